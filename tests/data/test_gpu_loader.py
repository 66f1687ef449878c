"""The GPU's path, with the CPU for a device; only NVIDIA's decoder is not tried without a GPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.batches import TrainBatches, open_train
from data.config import CropConfig, DataConfig, WriteConfig
from data.errors import DataError
from data.files import beton
from data.gpu_loader import GpuTrain
from data.stage import ready
from data.writer import write_split

BATCH, SEED = 12, 5


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


def test_padded_windows_are_the_other_loaders_to_the_bit(data):
    crop = CropConfig(kind="padded", size=64, padding=30)
    for ours, theirs in both(replace(data, write=WriteConfig(mode="raw", max_size=80), crop=crop)):
        assert torch.equal(ours.images, theirs.images)
        assert ours.digest == theirs.digest


def test_a_damaged_file_is_a_sentence(data, tmp_path):
    write_split(data, "train", workers=2)
    path, sidecar = ready(data, "train")
    copy = tmp_path / path.name
    content = bytearray(path.read_bytes())
    decoder = GpuTrain(path, sidecar, data, BATCH, torch.device("cpu"))
    for at in decoder.samples["image"]["data_ptr"].tolist():
        content[at : at + 2] = b"no"
    copy.write_bytes(content)
    for name in (beton(data, "train").name + ".names.json.gz",):
        (tmp_path / name).write_bytes((path.parent / name).read_bytes())
    decoder = GpuTrain(copy, sidecar, data, BATCH, torch.device("cpu"))
    with pytest.raises(DataError, match=r"cannot be decoded on cpu .*data.loader=ffcv"):
        list(decoder.decode(0, 0, torch.arange(BATCH).numpy()))
    decoder.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(data):
    with pytest.raises(DataError, match=r"needs an NVIDIA GPU.*data.loader=ffcv"):
        open_train(replace(data, loader="gpu"), batch_size=BATCH, seed=SEED)


@pytest.mark.gpu
def test_on_a_gpu(data):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for ours, theirs in both(data, "cuda"):
        assert ours.digest == theirs.digest
        assert (ours.images.cpu().int() - theirs.images.int()).abs().float().mean() < 3
