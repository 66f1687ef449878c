"""Small replicas of data sets as they are published: the true folders, file names and lists, with made-up images.

`make("pets", folder)` fills the root of `data=pets`. Checksums cannot be the published ones: `trust` has torchvision
accept any.
"""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data.readers.imagenet100 import WNIDS

FEW = 6  # classes, where there are more and none are asked for
BREEDS = ["Abyssinian", "american_bulldog", "Bengal", "boxer", "Egyptian_Mau", "great_pyrenees", "Russian_Blue", "pug"]
OBJECTS = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes", "anchor"]
CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi TT RS Coupe 2012", "Ram C/V Cargo Van Minivan 2012"]
GROUPS = ["Amphibians", "Birds", "Fungi", "Insects", "Plants", "Reptiles"]


def make(name: str, root: Path, per_class: int = 4, classes: int | None = None) -> None:
    """A replica of the data set of `conf/data/NAME.yaml` in `root`.

    It has `per_class` training images of each class and half as many (at least 1) in every other published split, and
    `classes` classes, or all up to 6 (imagenet100: all; imagenet: all up to 6 of its 1,000). Digits need none.
    """
    root.mkdir(parents=True, exist_ok=True)
    counts = {"train": per_class, "val": max(1, per_class // 2), "test": max(1, per_class // 2)}
    if name != "digits":
        _MAKERS[name](root, counts, classes)


def trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchvision take any file for the published one."""
    for module in ("cifar", "flowers102", "imagenet", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda path, *_: os.path.isfile(path))


def picture(label: int, i: int, sides: tuple[int, int] | None = None) -> Image.Image:
    """Image `i` of a class: a colour of the class, stripes and noise; 40 to 90 pixels a side, now and then grey."""
    rng = np.random.default_rng([label, i])
    width, height = sides or rng.integers(40, 91, 2).tolist()
    colour = (label + 1) * np.array([37, 91, 151]) % 256
    stripes = 40 * (np.arange(width) // (4 + label % 5) % 2)[None, :, None]
    pixels = (colour + stripes + rng.integers(0, 60, (height, width, 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("L" if i % 5 == 3 else "RGB")


def jpeg(label: int, i: int, sides: tuple[int, int] | None = None) -> bytes:
    """`picture` as a JPEG file."""
    buffer = io.BytesIO()
    picture(label, i, sides).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _folders(root: Path, counts: dict[str, int], names: list[str], splits: tuple[str, ...] = ("train", "val")) -> None:
    for split in splits:
        for label, name in enumerate(names):
            for i in range(counts[split]):
                _put(root / split / name / f"{name}_{split}_{i}.JPEG", jpeg(label, i + 100 * (split != "train")))


def _folder(root: Path, counts: dict[str, int], classes: int | None) -> None:
    _folders(root, counts, [f"class{i}" for i in range(classes or FEW)])


def _imagenet(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """The archives as ILSVRC gives them out: one in the other, and labels as numbers that are not in sorted order."""
    names = WNIDS[: classes or FEW]
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for label, name in enumerate(names):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for i in range(counts["train"]):
                    _add(inner, f"{name}_{i}.JPEG", jpeg(label, i))
            _add(outer, f"{name}.tar", buffer.getvalue())
    numbers = {label: len(names) - label for label in range(len(names))}  # ILSVRC's, of our sorted labels
    truth = [i % len(names) for i in range(counts["val"] * len(names))]
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for i, label in enumerate(truth):
            _add(tar, f"ILSVRC2012_val_{i + 1:08d}.JPEG", jpeg(label, 100 + i))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = [(numbers[label], name, name, "", 0) for label, name in enumerate(names)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array([*synsets, (len(names) + 1, "n00001740", "entity", "", 3)], fields)})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        _add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        lines = "".join(f"{numbers[label]}\n" for label in truth)
        _add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines.encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _imagenet100(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """Training classes in four folders, in no order, and Labels.json."""
    names = WNIDS[:classes] if classes else WNIDS
    for label, name in enumerate(names):
        for i in range(counts["train"]):
            _put(root / f"train.X{label % 4 + 1}" / name / f"{name}_{i}.JPEG", jpeg(label, i))
        for i in range(counts["val"]):
            _put(root / "val.X" / name / f"ILSVRC2012_val_{50 * label + i:08d}.JPEG", jpeg(label, 100 + i))
    _put(root / "Labels.json", json.dumps({name: name for name in reversed(names)}))
    if classes:
        _put(root / "classes.txt", "\n".join(names))


def _imagenette(root: Path, counts: dict[str, int], classes: int | None) -> None:
    names = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916", "n03417042", "n03425413"]
    _folders(root / "imagenette2", counts, names[: classes or FEW])
    _put(root / "imagenette2" / "noisy_imagenette.csv", "path,noisy_labels_0\n")


def _tiny_imagenet(root: Path, counts: dict[str, int], classes: int | None) -> None:
    base, names = root / "tiny-imagenet-200", WNIDS[: classes or FEW]
    rows = []
    for label, name in enumerate(names):
        for i in range(counts["train"]):
            _put(base / "train" / name / "images" / f"{name}_{i}.JPEG", jpeg(label, i, (64, 64)))
        _put(base / "train" / name / f"{name}_boxes.txt", f"{name}_0.JPEG\t0\t10\t63\t58\n")
    for i in range(counts["val"] * len(names)):
        label = (i * 5 + 1) % len(names) if len(names) % 5 else i % len(names)
        _put(base / "val" / "images" / f"val_{i}.JPEG", jpeg(label, 100 + i, (64, 64)))
        rows.append(f"val_{i}.JPEG\t{names[label]}\t0\t32\t44\t62\n")
    _put(base / "val" / "val_annotations.txt", "".join(rows))
    _put(base / "test" / "images" / "test_0.JPEG", jpeg(0, 0, (64, 64)))
    _put(base / "wnids.txt", "\n".join(reversed(names)))


def _cifar(root: Path, counts: dict[str, int], files: dict[str, str], key: str, names: list[str]) -> None:
    """Pickled batches of planes in mixed order, and the names of the classes; `files` are of which split."""
    for file, split in files.items():
        labels = np.random.default_rng(len(file)).permutation(np.repeat(np.arange(len(names)), counts[split]))
        planes = [np.asarray(picture(label, i, (32, 32)).convert("RGB")) for i, label in enumerate(labels.tolist())]
        pixels = np.stack(planes).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        _put(root / file, pickle.dumps({"data": pixels, key: labels.tolist(), "batch_label": file}))


def _cifar10(root: Path, counts: dict[str, int], classes: int | None) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"][:classes]
    base = root / "cifar-10-batches-py"
    batches = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}
    _cifar(base, {"train": -(-counts["train"] // 5), "test": counts["test"]}, batches, "labels", names)
    _put(base / "batches.meta", pickle.dumps({"label_names": names}))


def _cifar100(root: Path, counts: dict[str, int], classes: int | None) -> None:
    names = sorted(["apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle"][: classes or FEW])
    base = root / "cifar-100-python"
    _cifar(base, counts, {"train": "train", "test": "test"}, "fine_labels", names)
    _put(base / "meta", pickle.dumps({"fine_label_names": names, "coarse_label_names": ["fish"]}))


def _pets(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """Lists that are not sorted, images in none of them, MATLAB files among the images, a GIF named .jpg."""
    base, names = root / "oxford-iiit-pet", BREEDS[: classes or FEW]
    for split, file in (("train", "trainval"), ("test", "test")):
        lines = []
        for label, name in enumerate(names):
            for i in range(counts[split]):
                stem = f"{name}_{i + 1 + 100 * (split == 'test')}"
                _put(base / "images" / f"{stem}.jpg", jpeg(label, i + 100 * (split == "test")))
                lines.append(f"{stem} {label + 1} {1 + name[0].islower()} 1\n")
        _put(base / "annotations" / f"{file}.txt", "".join(reversed(lines)))
    picture(0, 200).save(base / "images" / "Abyssinian_34.jpg", "GIF")  # in no list
    _put(base / "images" / "Abyssinian_100.mat", b"MATLAB 5.0")


def _caltech101(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """All images in one folder per class; no split."""
    for label, name in enumerate(OBJECTS[: classes or FEW]):
        for i in range(counts["train"] + counts["test"]):
            path = root / "caltech101" / "101_ObjectCategories" / name / f"image_{i + 1:04d}.jpg"
            _put(path, jpeg(label, i))
    _put(root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google" / "tmp", b"")


def _cars(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """Annotations as arrays of structures; file names that both splits use."""
    base, names = root / "stanford_cars", CARS[:classes]
    fields = [(key, "O") for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, place in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = []
        for i, label in enumerate(np.random.default_rng(1).permutation(np.repeat(range(len(names)), counts[split]))):
            _put(base / f"cars_{split}" / f"{i + 1:05d}.jpg", jpeg(int(label), i + 100 * (split == "test")))
            rows.append((1, 1, 30, 30, int(label) + 1, f"{i + 1:05d}.jpg"))
        (base / place).parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(base / place, {"annotations": np.array([rows], fields)})
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array([names], object)})


def _dogs(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """Lists as columns of cells and of numbers."""
    names = [f"{wnid}-breed_{i}" for i, wnid in enumerate(["n02085620", "n02085782", "n02085936", "n02086079"])]
    names = names[:classes]
    for split in ("train", "test"):
        files, labels = [], []
        for label, name in enumerate(names):
            for i in range(counts[split]):
                files.append(f"{name}/{name.split('-')[0]}_{i + 1000 * (split == 'test')}.jpg")
                labels.append(label + 1)
                _put(root / "Images" / files[-1], jpeg(label, i + 100 * (split == "test")))
        columns = {"file_list": np.array(files, object)[:, None], "labels": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(root / f"{split}_list.mat", columns)


def _flowers102(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """Images numbered from 1 without regard to class or split, with two tables of numbers."""
    base, count = root / "flowers-102", classes or FEW
    pairs = [(split, label) for split in counts for label in range(count) for _ in range(counts[split])]
    order = np.random.default_rng(2).permutation(len(pairs))
    labels, places = [], {"train": [], "val": [], "test": []}
    for number, place in enumerate(order.tolist(), start=1):
        split, label = pairs[place]
        _put(base / "jpg" / f"image_{number:05d}.jpg", jpeg(label, number))
        labels.append(label + 1)
        places[split].append(number)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    ids = {"trnid": places["train"], "valid": places["val"], "tstid": places["test"]}
    scipy.io.savemat(base / "setid.mat", {key: np.array([numbers], np.uint16) for key, numbers in ids.items()})


def _inat2019(root: Path, counts: dict[str, int], classes: int | None) -> None:
    """Numbers of classes that are not in the order of the groups' names."""
    for split in ("train", "val"):
        images, annotations = [], []
        for label in range(classes or FEW):
            for i in range(counts[split]):
                identity = len(images) + 10_000 * (split == "val")
                file = f"train_val2019/{GROUPS[-1 - label % len(GROUPS)]}/{label}/{identity:032x}.jpg"
                _put(root / file, jpeg(label, i + 100 * (split == "val")))
                images.append({"id": identity, "file_name": file, "width": 60, "height": 60})
                annotations.append({"id": identity, "image_id": identity, "category_id": label})
        content = {"info": {}, "images": images[::-1], "annotations": annotations, "categories": [], "licenses": []}
        _put(root / f"{split}2019.json", json.dumps(content))


_MAKERS: dict[str, Callable[[Path, dict[str, int], int | None], None]] = {
    "folder": _folder,
    "imagenet": _imagenet,
    "imagenet100": _imagenet100,
    "imagenette": _imagenette,
    "tiny_imagenet": _tiny_imagenet,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "pets": _pets,
    "caltech101": _caltech101,
    "cars": _cars,
    "dogs": _dogs,
    "flowers102": _flowers102,
    "inat2019": _inat2019,
}
