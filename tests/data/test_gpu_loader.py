"""The GPU's path, with the CPU for a device; only NVIDIA's decoder is not tried without a GPU."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import decode_jpeg

from data.batches import TrainBatches, open_train
from data.beton import read_samples
from data.config import CropConfig, DataConfig, WriteConfig
from data.errors import DataError
from data.files import image_names
from data.gpu_loader import GpuTrain
from data.info import inspect
from data.stage import ready
from data.writer import write_split

BATCH, SEED = 12, 5
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture(scope="module")
def data(photo_folder: Path) -> DataConfig:
    return DataConfig(name="folder", root=str(photo_folder), image_size=64, repeats=2)


def both(data: DataConfig, device: str = "cpu") -> Iterator[tuple]:
    """Batches of an epoch from the device's path and from the torch loader."""
    write_split(data, "train", workers=2)
    theirs = open_train(replace(data, loader="torch"), batch_size=BATCH, seed=SEED, workers=0)
    decoder = GpuTrain(*ready(data, "train"), data, BATCH, torch.device(device))
    ours = TrainBatches(decoder, theirs.pool, BATCH, SEED, 0, 1, data.repeats)
    yield from zip(ours.epoch(3), theirs.epoch(3), strict=True)
    ours.close()


@pytest.mark.parametrize("write", [WriteConfig(), WriteConfig(mode="raw", max_size=200)], ids=["jpg", "raw"])
def test_order_boxes_and_flips_are_the_other_loaders_and_pixels_nearly(data, write):
    """Torch resizes without rounding between rows and columns."""
    differences = []
    for ours, theirs in both(replace(data, write=write)):
        assert ours.digest == theirs.digest
        assert torch.equal(ours.indices, theirs.indices)
        assert torch.equal(ours.labels, theirs.labels)
        assert (ours.images.dtype, ours.images.shape) == (torch.uint8, theirs.images.shape)
        assert ours.images.stride() == theirs.images.stride()
        difference = (ours.images.int() - theirs.images.int()).abs().float()
        differences.append(difference.mean(dim=(1, 2, 3)))
    differences = torch.cat(differences)
    assert differences.median() < 0.25  # grey levels
    assert differences.max() < 1.5  # of the image that was encoded again


@pytest.mark.parametrize("write", [WriteConfig(), WriteConfig(mode="raw", max_size=80)], ids=["jpg", "raw"])
def test_padded_windows_are_the_other_loaders_to_the_bit(data, write):
    """Of JPEG files, all but the one that was encoded again."""
    unequal = 0
    for ours, theirs in both(replace(data, write=write, crop=CropConfig(kind="padded", size=64, padding=30))):
        assert ours.digest == theirs.digest
        unequal += int((ours.images != theirs.images).flatten(1).any(1).sum())
    assert unequal <= (0 if write.mode == "raw" else data.repeats)


def test_a_damaged_image_is_named(data, tmp_path):
    write_split(data, "train", workers=2)
    path, sidecar = ready(data, "train")
    content, copy = bytearray(path.read_bytes()), tmp_path / path.name
    start = int(read_samples(path)[0]["image"]["data_ptr"][5])
    content[start : start + 2] = b"no"
    copy.write_bytes(content)
    names = image_names(path)
    shutil.copy(path.parent / f"{path.name}.names.json.gz", tmp_path)
    decoder = GpuTrain(copy, sidecar, data, BATCH, torch.device("cpu"))
    with pytest.raises(DataError, match=rf"{names[5]} in .* cannot be decoded on cpu .*write the file again"):
        list(decoder.decode(0, 0, np.arange(BATCH)))
    decoder.close()


def test_lack_of_memory_is_no_damage(data, monkeypatch):
    def decode(*_):
        raise torch.OutOfMemoryError("no memory")

    write_split(data, "train", workers=2)
    monkeypatch.setattr("data.gpu_loader.decode_jpeg", decode)
    decoder = GpuTrain(*ready(data, "train"), data, BATCH, torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        list(decoder.decode(0, 0, np.arange(BATCH)))
    decoder.close()


def test_one_call_decodes_a_batch(data, monkeypatch):
    """And what is handed to it is a part of the file."""
    seen = []

    def decode(jpegs, *arguments):
        seen.append([len(jpeg) for jpeg in jpegs])
        return decode_jpeg(jpegs, *arguments)

    write_split(data, "train", workers=2)
    monkeypatch.setattr("data.gpu_loader.decode_jpeg", decode)
    decoder = GpuTrain(*ready(data, "train"), data, BATCH, torch.device("cpu"))
    list(decoder.decode(0, 0, np.arange(2 * BATCH)))
    decoder.close()
    assert [len(lengths) for lengths in seen] == [BATCH, BATCH]
    assert sum(map(sum, seen)) < 0.8 * decoder.sizes[: 2 * BATCH].sum()


def test_the_rate_is_measured(data):
    write_split(data, "train", workers=2)
    decoder = GpuTrain(*ready(data, "train"), data, BATCH, torch.device("cpu"))
    assert 1 < decoder.rate() < 1e6
    decoder.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_when_it_is_opened(data):
    write_split(data, "train", workers=2)
    assert inspect(replace(data, loader="gpu")).train > 0  # as `run.dry` does on a login node
    with pytest.raises(DataError, match=r"needs an NVIDIA GPU.*data.loader=ffcv"):
        open_train(replace(data, loader="gpu"), batch_size=BATCH, seed=SEED)


@pytest.mark.gpu
def test_on_a_gpu(data):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for ours, theirs in both(data, "cuda"):
        assert ours.digest == theirs.digest
        assert (ours.images.cpu().int() - theirs.images.int()).abs().float().mean() < 3
