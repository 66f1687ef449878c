"""The fingerprint by which a run knows its images again."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError, files, fingerprint
from data.beton import FIELD, HEADER, SAMPLE, probe
from data.config import DataConfig, WriteConfig
from data.writer import write_split


@pytest.fixture
def own_config(photo_config: DataConfig, tmp_path: Path) -> DataConfig:
    """A copy of the photos, as .beton files too; raw, so that the content of an image moves no other."""
    root = shutil.copytree(photo_config.root, tmp_path / "photos", ignore=shutil.ignore_patterns("beton"))
    config = replace(photo_config, root=str(root), write=WriteConfig(mode="raw", max_size=64))
    for split in ("train", "val"):
        write_split(config, split)
    return config


def turn_a_photo(config: DataConfig) -> None:
    """Exchange an image of the training set for itself on its head: same name, same size in pixels."""
    path = Path(config.root) / "train" / "roof" / "03.jpg"
    with Image.open(path) as image:
        image.rotate(180).save(path, quality=90)


def rename_a_photo(config: DataConfig) -> None:
    path = Path(config.root) / "train" / "roof" / "03.jpg"
    path.rename(path.with_name("99.jpg"))


def test_a_split_that_stays_has_the_same_fingerprint_and_splits_differ(own_config: DataConfig) -> None:
    first = fingerprint(own_config)
    assert first == fingerprint(own_config)
    assert first["train"] != first["val"]


def test_test_images_have_a_fingerprint_too(own_config: DataConfig) -> None:
    """Of a hold-out, which leaves the validation folder for the test."""
    config = replace(own_config, holdout=0.2, loader="torch")
    first = fingerprint(config)
    path = Path(config.root) / "val" / "sky" / "00.jpg"
    path.rename(path.with_name("99.jpg"))
    second = fingerprint(config)
    assert {split for split in first if first[split] != second[split]} == {"test"}


def test_where_the_files_lie_does_not_count(own_config: DataConfig, tmp_path: Path) -> None:
    first = fingerprint(own_config)
    elsewhere = shutil.copytree(own_config.root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert fingerprint(replace(own_config, root=str(elsewhere))) == first
    assert fingerprint(replace(own_config, stage=str(tmp_path / "node"))) == first


def test_a_file_that_was_replaced_under_its_old_sidecar_is_noticed(own_config: DataConfig) -> None:
    path = files.train_beton(own_config)
    sidecar, size, first = files.sidecar_path(path).read_bytes(), path.stat().st_size, fingerprint(own_config)
    turn_a_photo(own_config)
    write_split(own_config, "train", force=True)
    files.sidecar_path(path).write_bytes(sidecar)
    assert path.stat().st_size == size
    second = fingerprint(own_config)
    assert second["train"] != first["train"]
    assert second["val"] == first["val"]


@pytest.mark.parametrize(("loader", "eval_source"), [("torch", "beton"), ("ffcv", "original")])
def test_originals_are_known_by_their_names(own_config: DataConfig, loader: str, eval_source: str) -> None:
    config = replace(own_config, loader=loader, eval_source=eval_source)
    first = fingerprint(config)
    rename_a_photo(config)
    second = fingerprint(config)
    assert (second["train"] != first["train"]) == (loader == "torch")
    assert second["val"] == first["val"]
    shutil.move(Path(config.root) / "val" / "sky" / "00.jpg", Path(config.root) / "val" / "roof" / "sky.jpg")
    assert fingerprint(config)["val"] != first["val"]


def test_a_file_that_is_missing_or_cut_short_is_refused(own_config: DataConfig) -> None:
    path = files.beton(own_config, "val")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"cut short or replaced; make it: .* --force"):
        fingerprint(own_config)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        fingerprint(own_config)


def test_a_file_that_fails_while_it_is_read_is_a_sentence(
    own_config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("data.beton.probe", fail)
    with pytest.raises(
        DataError, match=r"cannot be read \(Input/output error\); check its permissions, or set data\.root"
    ):
        fingerprint(own_config)


def set_label(path: Path) -> None:
    """The last byte of the last record is of its label."""
    count = int(np.fromfile(path, HEADER, 1)["num_samples"][0])
    change(path, HEADER.itemsize + 2 * FIELD.itemsize + count * SAMPLE.itemsize - 1)


def change(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: change(path, 0), id="header"),
        pytest.param(set_label, id="label"),
        pytest.param(lambda path: change(path, int(np.fromfile(path, HEADER, 1)["page_size"][0]) + 100), id="image"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size + 1), id="size"),
    ],
)
def test_probe_sees_header_records_images_and_size(own_config: DataConfig, damage: Callable[[Path], None]) -> None:
    path = files.train_beton(own_config)
    before = probe(path)
    damage(path)
    assert probe(path) != before
