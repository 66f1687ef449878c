"""Every reader on a small replica of the layout that it reads."""

import errno
import hashlib
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, ImageNet, imagenet
from torchvision.datasets import folder as torchvision_folder

from data.config import DataConfig
from data.errors import DataError
from data.info import inspect
from data.readers import digits, folder, readers
from data.readers import imagenet as imagenet_reader
from data.readers.base import Source, UnreadableImage, decode
from data.splits import open_source, splits

WNIDS = ["n01440764", "n01443537", "n02102040"]


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (24, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def assert_well_formed(source: Source) -> None:
    """What every source promises."""
    assert len(source) == len(source.labels) == len(source.names) == len(set(source.names))
    assert source.labels.dtype == np.int64
    assert sorted(source.classes) == source.classes
    assert (np.diff(source.labels) >= 0).all()
    assert set(source.labels) == set(range(len(source.classes)))
    assert source.image(0).mode == "RGB"
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(copy.image(len(source) - 1)), np.asarray(source.image(len(source) - 1)))


def test_folder_is_torchvisions(photo_folder: Path) -> None:
    source = folder.open_split(photo_folder, "train")
    assert_well_formed(source)
    reference = torchvision_folder.ImageFolder(str(photo_folder / "train"))
    assert source.classes == reference.classes
    assert [
        (photo_folder / "train" / name, label) for name, label in zip(source.names, source.labels, strict=True)
    ] == [(Path(path), label) for path, label in reference.samples]
    for i in (0, len(source) - 1):
        assert np.array_equal(np.asarray(source.image(i)), np.asarray(reference[i][0]))
        assert source.encoded(i) == Path(reference.samples[i][0]).read_bytes()


def test_folder_takes_test_for_validation_and_looks_deeper(tmp_path: Path) -> None:
    for name in ("train/a/1.jpg", "train/b/deep/er/2.JPG", "train/b/1.png", "test/a/1.jpg", "test/b/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7)).save(tmp_path / name)
    (tmp_path / "train/b/readme.txt").write_text("not an image")
    (tmp_path / "train/b/._1.jpg").write_bytes(b"left by a Mac")
    assert folder.open_split(tmp_path, "train").names == ["a/1.jpg", "b/1.png", "b/deep/er/2.JPG"]
    config = DataConfig(name="folder", root=str(tmp_path))
    assert splits(config) == ("train", "val")
    assert open_source(config, "val").names == ["a/1.jpg", "b/1.jpg"]
    (tmp_path / "test").rename(tmp_path / "validation")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "1.jpg").write_bytes(b"of an unknown class")
    assert splits(config) == ("train", "val")
    (tmp_path / "validation").rename(tmp_path / "test" / "a")
    assert splits(config) == ("train", "val")
    (tmp_path / "val").mkdir()
    assert splits(config) == ("train", "val", "test")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: shutil.rmtree(root), "does not exist; set data.root"),
        (lambda root: shutil.rmtree(root / "train"), "has no sub-folder train"),
        (lambda root: shutil.rmtree(root / "val"), "has no sub-folder val or test"),
        (lambda root: [shutil.rmtree(p) for p in (root / "train").iterdir()], "train is empty"),
        (lambda root: [p.unlink() for p in (root / "train" / "sky").iterdir()], "sky has no images"),
        (lambda root: shutil.rmtree(root / "val" / "roof"), "Validation has no images of class roof"),
        (lambda root: shutil.rmtree(root / "train" / "roof"), "Training has no images of class roof"),
    ],
    ids=["root", "train", "val", "empty", "empty class", "class missing", "class extra"],
)
def test_folder_names_what_is_missing(photo_config: DataConfig, tmp_path: Path, spoil, sentence: str) -> None:
    root = shutil.copytree(photo_config.root, tmp_path / "photos", ignore=shutil.ignore_patterns("beton"))
    photo_config.root = str(root)
    spoil(root)
    with pytest.raises(DataError, match=sentence):
        inspect(photo_config)


def test_unknown_split_names_those_that_there_are(photo_config: DataConfig) -> None:
    with pytest.raises(DataError, match=r"no split 'test'; choose train or val, or make one by data\.holdout"):
        open_source(photo_config, "test")


@pytest.mark.parametrize("function", ["scandir", "stat"])
def test_a_folder_that_may_not_be_read_is_a_sentence(
    photo_config: DataConfig, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """By a patch, since root may read everything. os.walk would pass over what scandir refuses."""
    locked, original = str(Path(photo_config.root) / "train" / ("sky" if function == "scandir" else "")), None

    def refuse(path, *arguments, **named):
        if str(path) == locked.rstrip("/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, *arguments, **named)

    original = getattr(os, function)
    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(
        DataError, match=r"train.* cannot be read \(Permission denied\); check its permissions, or set data\.root"
    ):
        open_source(photo_config, "train")


def test_unknown_reader_names_the_nearest(photo_config: DataConfig) -> None:
    assert {"cifar10", "digits", "folder", "imagenet"} <= set(readers())
    photo_config.reader = "foldr"
    with pytest.raises(DataError, match="no reader 'foldr'; set data\\.reader to folder"):
        open_source(photo_config, "train")


def test_digits_are_split_once_and_for_all(tmp_path: Path) -> None:
    splits = {split: digits.open_split(tmp_path / "not there", split) for split in ("train", "val")}
    names = {split: source.names for split, source in splits.items()}
    for source in splits.values():
        assert_well_formed(source)
        assert source.image(5).size == (32, 32)
        assert source.encoded(0) is None
    assert not set(names["train"]) & set(names["val"])
    assert (len(names["train"]), len(names["val"])) == (1437, 360)
    shares = np.bincount(splits["val"].labels) / np.bincount(load_digits().target)
    assert shares == pytest.approx(0.2, abs=0.01)
    digest = hashlib.sha256("\n".join(names["val"]).encode()).hexdigest()
    assert digest.startswith("56de7d3466105cdd")  # the same images for everyone, whatever the versions


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """The published layout with 20 images a batch; returns the pixels (n, 32, 32, 3) of both splits."""
    folder_ = root / CIFAR10.base_folder
    folder_.mkdir()
    rng = np.random.default_rng(0)
    pixels: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    sums: dict[str, list] = {"train": [], "val": []}

    def store(name: str, content: dict) -> str:
        (folder_ / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder_ / name).read_bytes()).hexdigest()

    for split, batches in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("val", ["test_batch"])):
        for name in batches:
            planes = rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
            labels = [int(i) for i in rng.permutation(20) % 10]
            sums[split].append([name, store(name, {"data": planes.reshape(20, -1), "labels": labels})])
            order = np.argsort(labels, kind="stable")
            pixels[split].append(np.column_stack([labels, np.arange(20)])[order])
            pixels[split].append(planes.transpose(0, 2, 3, 1))
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = store("batches.meta", {"label_names": classes})
    monkeypatch.setattr(CIFAR10, "train_list", sums["train"])
    monkeypatch.setattr(CIFAR10, "test_list", sums["val"])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return {split: np.concatenate(parts[1::2]) for split, parts in pixels.items()}


def test_cifar10_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_cifar10(tmp_path, monkeypatch)
    config = DataConfig(name="cifar10", reader="cifar10", root=str(tmp_path))
    for split in ("train", "val"):
        source = open_source(config, split)
        assert_well_formed(source)
        assert source.classes[:2] == ["airplane", "automobile"]
        for i in range(len(source)):
            name, position = source.names[i].split("/")
            assert name == source.classes[source.labels[i]]
            assert np.array_equal(np.asarray(source.image(i)), pixels[split][int(position)])
    (tmp_path / CIFAR10.base_folder / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(DataError, match="holds neither cifar-10-batches-py"):
        open_source(config, "train")


def test_cifar10_folders(photo_folder: Path) -> None:
    source = open_source(DataConfig(name="cifar10", reader="cifar10", root=str(photo_folder)), "val")
    assert source.classes == ["flower", "roof", "sky"]


@pytest.fixture
def imagenet_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three original archives with 3 classes: 4 images each to train on, 6 in all to validate on."""
    root = tmp_path / "archives"
    root.mkdir()
    rng = np.random.default_rng(0)

    def color() -> tuple[int, int, int]:
        red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
        return red, green, blue

    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as train:
        for wnid in reversed(WNIDS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in (10, 9, 100, 1):
                    add(tar, f"{wnid}_{i}.JPEG", jpeg(color()))
            add(train, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as val:
        for i in rng.permutation(6):
            add(val, f"ILSVRC2012_val_{i + 1:08d}.JPEG", jpeg(color()))
    make_devkit(root, labels=[2, 3, 1, 1, 3, 2])
    for part, (name, _) in imagenet.ARCHIVE_META.items():
        md5 = hashlib.md5((root / name).read_bytes()).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (name, md5))
    return root


def make_devkit(root: Path, labels: list[int]) -> None:
    """Synsets numbered otherwise than their WordNet ids are sorted, and one that is no leaf."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array(
        [
            (1, WNIDS[2], "springer", "", 0),
            (2, WNIDS[0], "tench, Tinca", "", 0),
            (3, WNIDS[1], "goldfish", "", 0),
            (4, "n00001740", "entity", "", 3),
        ],
        dtype=kind,
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{label}\n" for label in labels).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)


def test_imagenet_archives_are_read_in_place(imagenet_archives: Path, tmp_path: Path) -> None:
    """As torchvision unpacks them: the same images under the same labels, also when read from its folders."""
    unpacked = shutil.copytree(imagenet_archives, tmp_path / "unpacked")
    for split, count in (("train", 12), ("val", 6)):
        before = sorted(imagenet_archives.glob("ILSVRC*"))
        source = open_source(DataConfig(name="imagenet", reader="imagenet", root=str(imagenet_archives)), split)
        assert sorted(path for path in imagenet_archives.iterdir() if path.name != "beton") == before
        assert_well_formed(source)
        assert source.classes == WNIDS
        assert len(source) == count
        reference = ImageNet(str(unpacked), split)
        folders = open_source(DataConfig(name="imagenet", reader="imagenet", root=str(unpacked)), split)
        assert folders.names == source.names
        for i, (path, label) in enumerate(reference.samples):
            assert source.names[i] == f"{Path(path).parent.name}/{Path(path).name}"
            assert source.labels[i] == folders.labels[i] == label
            assert source.encoded(i) == Path(path).read_bytes() == folders.encoded(i)


def test_imagenet_archives_are_searched_once(imagenet_archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(name="imagenet", reader="imagenet", root=str(imagenet_archives))
    searched = []
    for name in ("train_places", "val_places"):
        search = getattr(imagenet_reader, name)
        monkeypatch.setattr(
            imagenet_reader, name, lambda *given, name=name, search=search: searched.append(name) or search(*given)
        )

    def contents(split: str) -> list[tuple[str, int, bytes]]:
        source = open_source(config, split)
        return [(source.names[i], int(source.labels[i]), source.encoded(i)) for i in range(len(source))]

    for split in ("train", "val"):
        assert contents(split) == contents(split)
    assert searched == ["train_places", "val_places"]
    index = imagenet_archives / "beton" / "ILSVRC2012_img_train.tar.index.npz"
    os.utime(imagenet_archives / "ILSVRC2012_img_train.tar")  # changed: it may be another one
    contents("train")
    assert len(searched) == 3
    index.write_bytes(index.read_bytes()[:-40])
    contents("train")
    assert len(searched) == 4
    shutil.rmtree(index.parent)
    index.parent.write_text("nothing may be written here")
    assert contents("train") == contents("train")
    assert len(searched) == 6


def test_imagenet_archive_that_cannot_be_read_is_an_unreadable_image(imagenet_archives: Path) -> None:
    source = open_source(DataConfig(name="imagenet", reader="imagenet", root=str(imagenet_archives)), "train")
    (imagenet_archives / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(UnreadableImage, match=r"n01440764_1\.JPEG cannot be read \(No such file"):
        source.encoded(0)


def test_imagenet_names_the_archive(imagenet_archives: Path) -> None:
    config = DataConfig(name="imagenet", reader="imagenet", root=str(imagenet_archives))
    devkit = imagenet_archives / "ILSVRC2012_devkit_t12.tar.gz"
    devkit.write_bytes(devkit.read_bytes()[:-30])
    with pytest.raises(DataError, match="devkit_t12\\.tar\\.gz is damaged"):
        open_source(config, "val")
    train = imagenet_archives / "ILSVRC2012_img_train.tar"
    for content in (b"<html>please log in</html>", train.read_bytes()[: train.stat().st_size // 2]):
        train.write_bytes(content)
        with pytest.raises(DataError, match="img_train\\.tar is damaged"):
            open_source(config, "train")
    train.unlink()
    with pytest.raises(DataError, match="neither ILSVRC2012_img_train\\.tar nor the folders"):
        open_source(config, "train")


def test_decode_converts_every_kind(photos: dict[str, Image.Image]) -> None:
    photo = photos["china"].resize((64, 48))
    wide = Image.fromarray((np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77)
    kinds = {"cmyk.jpg": photo.convert("CMYK"), "palette.png": photo.quantize(64), "rgba.png": photo.convert("RGBA")}
    for name, image in (kinds | {"grey.jpg": photo.convert("L"), "wide.png": wide}).items():
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if name.endswith("jpg") else "PNG")
        decoded = decode(buffer.getvalue(), name)
        assert (decoded.mode, decoded.size) == ("RGB", photo.size)
        reference = photo.convert("L") if image is wide else image
        error = np.abs(np.asarray(decoded).astype(int) - np.asarray(reference.convert("RGB")))
        assert error.mean() < (8 if name.endswith("jpg") else 0.001), name


@pytest.mark.parametrize(
    "data", [b"", b"not an image", jpeg((1, 2, 3), (200, 200))[:-200]], ids=["empty", "text", "cut"]
)
def test_decode_names_what_it_cannot_read(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match="sky/x\\.jpg cannot be read"):
        decode(data, "sky/x.jpg")
