"""Every data set of conf/data on a replica of its published layout: readers, splits, files and loaders."""

import pickle
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.datasets import INaturalist

import data
from data import files, readers
from data.batches import open_eval, open_train
from data.config import CropConfig, DataConfig
from data.errors import DataError
from data.readers.base import Source
from data.splits import _pooled, open_source, open_training, splits, training_indices
from data.writer import write_split
from scripts.prepare import main
from tests import replicas

# Classes, and images to train, validate and test on, of a replica with 4 images per class.
EXPECTED = {
    "imagenet": (6, 24, 12, None),
    "imagenet100": (100, 400, 200, None),
    "imagenette": (6, 24, 12, None),
    "tiny_imagenet": (6, 24, 12, None),
    "cifar10": (10, 50, 20, None),
    "cifar100": (6, 24, 12, None),
    "pets": (6, 24, 12, None),
    "caltech101": (6, 30, 6, None),
    "cars": (4, 16, 8, None),
    "dogs": (4, 16, 8, None),
    "flowers102": (102, 24, 12, 12),  # of which 6 have images
    "inat2019": (6, 24, 12, None),
    "folder": (6, 24, 12, None),
    "digits": (10, 1437, 360, None),
}
NAMES = sorted(file.stem for file in files.CONF.glob("*.yaml"))
Replica = Callable[..., DataConfig]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    """The config of a data set whose replica is made at first use; loader torch."""
    made: dict[str, Path] = {}

    def config(name: str, **settings) -> DataConfig:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            replicas.make(name, made[name])
        return replace(files.usual(name), root=str(made[name]), **({"loader": "torch"} | settings))

    return config


@pytest.fixture(autouse=True)
def trust(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas.trust(monkeypatch)


def shown_label(source: Source, i: int, labels: int) -> int | None:
    """The class whose colour image `i` has; None of a grey one."""
    pixels = np.asarray(source.image(i)).astype(float).mean(axis=(0, 1))
    if np.ptp(pixels) < 4:
        return None
    colours = [np.asarray(replicas.picture(label, 0)).astype(float).mean(axis=(0, 1)) for label in range(labels)]
    return int(np.argmin(np.linalg.norm(np.array(colours) - pixels, axis=1)))


def test_every_data_set_is_tested() -> None:
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_data_set_is_read_as_published(name: str, replica: Replica) -> None:
    config = replica(name)
    classes, *counts = EXPECTED[name]
    pictured = {"flowers102": 6, "digits": 0, "imagenet100": 0}.get(name, classes)  # a hundred colours are too many
    info = data.inspect(config)
    assert (len(info.classes), info.train, info.val, info.test) == (classes, *counts)
    named: set[str] = set()
    told: set[int] = set()
    for split in splits(config):
        source = open_source(config, split)
        assert source.classes == info.classes
        assert len(set(source.names)) == len(source.names)
        assert (np.diff(source.labels) >= 0).all()
        for label in range(classes):
            group = [name for name, own in zip(source.names, source.labels, strict=True) if own == label]
            assert group == sorted(group)
        copy = pickle.loads(pickle.dumps(source))
        assert np.array_equal(np.asarray(copy.image(1)), np.asarray(source.image(1)))
        assert source.image(0).mode == "RGB"
        if pictured:
            shown = [(shown_label(source, i, pictured), int(source.labels[i])) for i in range(len(source))]
            assert all(seen in (None, label) for seen, label in shown)
            told |= {label for seen, label in shown if seen is not None}
        named |= {f"{split}/{each}" for each in source.names}
    assert len(named) == sum(count or 0 for count in counts)
    assert len(told) == pictured


@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_an_empty_folder_is_a_sentence_that_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    config, nowhere = replace(files.usual(name), root=str(tmp_path)), tmp_path / "nowhere"
    for split in splits(config):
        with pytest.raises(DataError) as raised:
            open_source(config, split)
        assert str(tmp_path) in str(raised.value)
        assert "\n" not in str(raised.value)
        lacks = str(raised.value).replace(str(tmp_path), str(nowhere))
        with pytest.raises(DataError, match=rf"{nowhere} does not exist; set data\.root.*: {re.escape(lacks)}$"):
            open_source(replace(config, root=str(nowhere)), split)


def test_inaturalist_has_torchvisions_labels(replica: Replica, tmp_path: Path) -> None:
    replicas.make("inat2019", tmp_path)
    (tmp_path / "train_val2019").rename(tmp_path / "2019")
    source = open_source(replace(replica("inat2019"), root=str(tmp_path), split="pooled"), "train")
    theirs = INaturalist(str(tmp_path), version="2019")
    labels = {file: label for label, file in theirs.index}
    assert source.classes == theirs.all_categories
    for name, label in zip(source.names, source.labels, strict=True):
        assert labels[name.rsplit("/", 1)[-1]] == label


def test_caltech_trains_on_thirty_of_each_class(tmp_path: Path) -> None:
    replicas.make("caltech101", tmp_path, per_class=34, classes=2)
    config = replace(files.usual("caltech101"), root=str(tmp_path))
    train, val = open_source(config, "train"), open_source(config, "val")
    assert np.bincount(train.labels).tolist() == [30, 30]
    assert np.bincount(val.labels).tolist() == [21, 21]
    assert sorted(train.names + val.names) == sorted(readers.open_pool(config).names)
    left_out = [i for i in range(1, 52) if f"BACKGROUND_Google/image_{i:04d}.jpg" in val.names]
    assert left_out[:5] == [1, 2, 5, 8, 9]  # for everyone, for ever


def test_pets_pool_has_images_that_no_list_names(replica: Replica) -> None:
    pool = readers.open_pool(replica("pets"))
    assert len(pool) == 24 + 12 + 1
    assert pool.labels[pool.names.index("Abyssinian/Abyssinian_34.jpg")] == 0


@pytest.mark.parametrize("name", ["pets", "cars", "cifar100", "inat2019"])
def test_the_pool_has_the_images_of_its_labels(name: str, replica: Replica) -> None:
    pool, classes = readers.open_pool(replica(name)), EXPECTED[name][0]
    shown = [(shown_label(pool, i, classes), int(pool.labels[i])) for i in range(len(pool))]
    assert all(seen in (None, label) for seen, label in shown)
    assert {label for seen, label in shown if seen is not None} == set(range(classes))


def test_imagenet100_is_taken_from_imagenets_archives(tmp_path: Path) -> None:
    replicas.make("imagenet", tmp_path)
    config = replace(files.usual("imagenet100"), root=str(tmp_path))
    with pytest.raises(DataError, match="no train images of 94 classes such as n01498041"):
        open_source(config, "train")
    (tmp_path / "classes.txt").write_text("n01491361\nn01440764\n")
    for split, count in (("train", 8), ("val", 4)):
        source = open_source(config, split)
        assert source.classes == ["n01440764", "n01491361"]
        assert len(source) == count
        assert [shown_label(source, i, 6) in (None, 3 * source.labels[i]) for i in range(count)] == [True] * count


@pytest.mark.parametrize("name", ["cifar100", "pets", "imagenet", "folder"])
def test_splits_are_disjoint(name: str, replica: Replica) -> None:
    def names(**settings) -> dict[str, set[str]]:
        config = replica(name, **settings)
        return {split: set(open_source(config, split).names) for split in splits(config)}

    published, held, pooled = names(), names(holdout=0.25), names(split="pooled")
    assert held["train"] | held["val"] == published["train"]
    assert not held["train"] & held["val"]
    assert held["test"] == published["val"]
    pool = set(readers.open_pool(replica(name)).names)
    assert set.union(*pooled.values()) <= pool
    assert sum(map(len, pooled.values())) == len(set.union(*pooled.values()))
    for settings in ({"holdout": 0.25}, {"split": "pooled"}):
        assert names(**settings) == names(**settings)
        assert names(**settings, split_seed=1)["val"] != names(**settings)["val"]


@pytest.mark.parametrize(
    ("count", "train", "share"),
    [(7_390, 5_173, 1_108), (9_144, 6_400, 1_371), (16_185, 11_329, 2_427), (20_580, 14_405, 3_087), (200, 140, 30)],
)
def test_pooled_has_the_numbers_of_gabs_script(count: int, train: int, share: int) -> None:
    """Of Pet, Caltech-101, Cars and Dogs; what its three roundings leave over is in no split."""
    parts = [_pooled(0, split, count) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [train, share, share]
    assert len(np.unique(np.concatenate(parts))) == train + 2 * share


def test_a_holdout_has_its_share_of_every_class(replica: Replica) -> None:
    labels = np.repeat(np.arange(4), [2, 10, 11, 100])
    config = replica("cifar10", holdout=0.15)
    rest = training_indices(config, labels)
    assert np.bincount(labels[rest]).tolist() == [1, 8, 9, 85]
    runs = [set(training_indices(replace(config, split_seed=seed), labels)) for seed in range(40)]
    out = np.array([[i not in run for i in range(len(labels))] for run in runs])
    assert out[:, labels == 3].any(axis=0).mean() > 0.95  # any image may be held out, not the last ones of a class
    assert abs(out[:, labels == 3].mean(axis=0).std() - np.sqrt(0.15 * 0.85 / 40)) < 0.02


def test_fractions_are_balanced_and_contain_one_another(replica: Replica) -> None:
    labels = np.repeat(np.arange(3), [10, 20, 100])
    parts = [training_indices(replica("cifar10", fraction=fraction), labels) for fraction in (0.2, 0.6, 1.0)]
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[2, 4, 20], [6, 12, 60], [10, 20, 100]]
    assert set(parts[0]) < set(parts[1]) < set(parts[2])
    held = training_indices(replica("cifar10", fraction=0.5, holdout=0.2), labels)
    whole = training_indices(replica("cifar10", holdout=0.2), labels)
    assert set(held) < set(whole)
    assert np.bincount(labels[held]).tolist() == [4, 8, 40]


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("cifar10", {"split": "random"}, "data.split is 'random'; set it to official or pooled"),
        ("cifar10", {"holdout": 1.0}, "data.holdout is 1.0; set a share"),
        ("cifar10", {"fraction": 0.0}, "data.fraction is 0.0; set a share"),
        ("cifar10", {"split": "pooled", "holdout": 0.1}, "set data.holdout=0, or data.split=official"),
        ("cifar10", {"metric": "accuracy"}, "set it to top1 or mean_per_class"),
        ("cifar10", {"holdout": 0.95}, "leaves no training image of class 0"),
        ("flowers102", {"holdout": 0.1}, "nothing need be held out; set data.holdout=0"),
    ],
)
def test_impossible_splits_are_refused(name: str, settings: dict, sentence: str, replica: Replica) -> None:
    for look in (data.inspect, lambda config: open_train(config, batch_size=2, seed=0, workers=0)):
        with pytest.raises(DataError, match=sentence):
            look(replica(name, **settings))


def test_runs_validate_on_published_test_images_unless_others_are_drawn(replica: Replica) -> None:
    assert data.validates_on_test(replica("pets"))
    for config in (replica("pets", holdout=0.25), replica("pets", split="pooled"), replica("flowers102")):
        assert not data.validates_on_test(config)


def test_a_split_that_there_is_not_is_refused(replica: Replica) -> None:
    with pytest.raises(DataError, match=r"cifar10 has no split 'test'; choose train or val, or make one by data\.hold"):
        open_eval(replica("cifar10"), batch_size=4, workers=0, split="test")


def test_training_keeps_the_positions_of_the_whole_set(replica: Replica) -> None:
    """So an image has the same crops and augmentation with and without a hold-out."""
    config = replica("cifar100", holdout=0.25, fraction=0.5)
    batches = open_train(config, batch_size=3, seed=0, workers=0)
    chosen = training_indices(config, open_training(config).labels)
    assert batches.num_samples == len(chosen) == data.inspect(config).train
    assert batches.steps_per_epoch == len(chosen) // 3
    assert batches.describe().startswith("torch: 24 original images")
    assert batches.describe().endswith("; 12 of them to train on")
    whole = {
        int(i): image
        for batch in open_train(replica("cifar100"), batch_size=3, seed=0, workers=0).epoch(1)
        for i, image in zip(batch.indices, batch.images, strict=True)
    }
    seen = [(int(i), image) for batch in batches.epoch(1) for i, image in zip(batch.indices, batch.images, strict=True)]
    assert sorted(i for i, _ in seen) == chosen.tolist()
    assert all(torch.equal(image, whole[i]) for i, image in seen)


def test_copies_of_repeated_augmentation_are_of_the_images_to_train_on(replica: Replica) -> None:
    config = replica("cifar100", holdout=0.25, repeats=2)
    whole = open_training(config)
    chosen = training_indices(config, whole.labels)
    for batch in open_train(config, batch_size=6, seed=0, workers=0).epoch(0):
        positions = batch.indices % len(whole)
        assert len(positions.unique()) == 3
        assert set(positions.tolist()) <= set(chosen.tolist())
        assert batch.labels.tolist() == whole.labels[positions].tolist()


@pytest.mark.parametrize("settings", [{"holdout": 0.25}, {"split": "pooled"}], ids=["holdout", "pooled"])
def test_files_of_drawn_splits(settings: dict, replica: Replica) -> None:
    """One training file for all seeds; evaluation files that say how they were drawn."""
    config = replica("cifar100", **settings, loader="ffcv", split_seed=7)
    data.prepare(config)
    made = sorted(path.name for path in Path(config.root, "beton").glob("*.beton"))
    for split in splits(config):
        assert files.is_complete(files.beton(config, split))
        stored = files.image_names(files.beton(config, split))
        whole = open_training(config) if split == "train" else open_source(config, split)
        assert stored == whole.names
    assert data.inspect(config) == data.inspect(replace(config, loader="torch"))
    other = replace(config, split_seed=8)
    data.prepare(other)
    new = sorted(path.name for path in Path(config.root, "beton").glob("*.beton") if path.name not in made)
    assert all("seed8" in name for name in new)
    assert len(new) == (1 if "holdout" in settings else 2)
    assert data.fingerprint(config)["train"] != data.fingerprint(other)["train"]


def test_a_holdouts_test_set_is_the_file_of_the_validation_set(replica: Replica) -> None:
    config = replica("cifar100", holdout=0.5)
    assert files.beton(config, "test") == files.beton(replace(config, holdout=0.0), "val")
    assert files.settings(config, "test") == files.settings(replace(config, holdout=0.0), "val")


def test_a_file_that_lacks_images_is_not_drawn_from(tmp_path: Path) -> None:
    replicas.make("folder", tmp_path)
    (tmp_path / "train/class2/class2_train_1.JPEG").write_bytes(b"nothing")
    config = replace(files.usual("folder"), root=str(tmp_path), image_size=32)
    write_split(config, "train", skip_unreadable=True)
    assert files.check(files.beton(config, "train"), config, "train").count == 23
    for settings in ({"holdout": 0.5}, {"fraction": 0.5}):
        drawn = replace(config, **settings)
        with pytest.raises(DataError, match="lacks 1 images that could not be read"):
            files.check(files.beton(drawn, "train"), drawn, "train")


def test_a_file_of_another_reader_is_refused(tmp_path: Path) -> None:
    replicas.make("folder", tmp_path)
    config = replace(files.usual("folder"), root=str(tmp_path), image_size=32)
    path = write_split(config, "val")
    with pytest.raises(DataError, match=r"written by the reader folder, not imagenet; make it: .* --force"):
        files.check(path, replace(config, reader="imagenet"), "val")


@pytest.mark.ffcv
def test_both_loaders_agree_on_drawn_splits_and_padded_crops(replica: Replica) -> None:
    """Raw storage: every bit, in training and in testing."""
    crop = CropConfig(kind="padded", size=36)
    config = replica("cifar100", split="pooled", fraction=0.7, crop=crop, loader="ffcv")
    data.prepare(config)
    by_ffcv, by_torch = (
        open_train(replace(config, loader=loader), batch_size=6, seed=3, workers=1) for loader in ("ffcv", "torch")
    )
    assert by_ffcv.num_samples == by_torch.num_samples == data.inspect(config).train < 26
    for a, b in zip(by_ffcv.epoch(2), by_torch.epoch(2), strict=True):
        assert a.images.shape[-1] == 36
        assert a.digest == b.digest
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.indices, b.indices)
    by_ffcv.close()
    by_torch.close()
    tests = [
        open_eval(replace(config, loader=loader), batch_size=4, workers=0 if loader == "torch" else 1, split="test")
        for loader in ("ffcv", "torch")
    ]
    assert tests[0].names == tests[1].names
    for a, b in zip(*tests, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    tests[0].close()


@pytest.mark.parametrize("name", ["pets", "tiny_imagenet", "imagenet"])
def test_prepare_goes_from_the_published_files_to_beton(
    name: str, replica: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replica(name)
    main([name, "--root", config.root, "data.image_size=32", "--workers", "1"])
    classes, train, val, _ = EXPECTED[name]
    out = capsys.readouterr().out
    assert f"{train} images of {classes} classes" in out
    assert f"val_32_{config.eval_crop:g}_bicubic.beton: {val} images" in out


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stanford Dogs' archives, served in place of the network's; returns what was asked for."""
    replicas.make("dogs", tmp_path / "dogs")
    asked: list[str] = []
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "dogs" / "Images", "Images")
    with tarfile.open(tmp_path / "lists.tar", "w") as tar:
        for name in ("train_list.mat", "test_list.mat"):
            tar.add(tmp_path / "dogs" / name, name)

    class Response:
        def __init__(self, path: Path, url: str):
            self.file, self.url = path.open("rb"), url
            self.length = path.stat().st_size

        def __enter__(self) -> "Response":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def read(self, size: int = -1) -> bytes:
            return self.file.read(size)

    def serve(request: urllib.request.Request, *_: object, **__: object) -> Response:
        asked.append(request.full_url)
        return Response(tmp_path / request.full_url.rsplit("/", 1)[-1], request.full_url)

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    return asked


def test_download_fetches_and_unpacks_what_is_missing(archives: list[str], tmp_path: Path) -> None:
    root = tmp_path / "fetched"
    main(["dogs", "--root", str(root), "--download", "data.image_size=32", "--workers", "1"])
    assert {url.rsplit("/", 1)[-1] for url in archives} == {"images.tar", "lists.tar"}
    config = replace(files.usual("dogs"), root=str(root), loader="torch")
    assert data.inspect(config).train == 16
    archives.clear()
    main(["dogs", "--root", str(root), "--download", "data.image_size=32"])
    assert archives == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("digits", "folder")])
def test_download_without_a_network_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fail(url: str, root: str, filename: str | None = None, *_: object, **__: object) -> None:
        asked.append(f"{url} as {root}/{filename or url.rsplit('/', 1)[-1]}")
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    with pytest.raises(SystemExit):
        main([name, "--root", str(tmp_path), "--download"])
    told = capsys.readouterr().err
    assert "Traceback" not in told
    if not asked:
        assert f"put its files into {tmp_path} as the first lines of conf/data/{name}.yaml say" in told
        return
    assert f"fetch {asked[0]}" in told
    assert "by other means, and run the same command again, with --download" in told
