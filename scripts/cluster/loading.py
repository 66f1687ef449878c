"""How fast the data wing hands out training images on each node, all its processes at once."""

import io
import itertools
import socket
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data import open_train
from data.config import DataConfig
from gab.distributed.processes import Processes, loader_options

SIZE = (500, 375)  # pixels, the commonest of ImageNet
DIFFERENT = 16  # photos; the others are their copies, which takes as long to decode
BATCH = 32  # images of each process


def loader_rate(processes: Processes, data: DataConfig, workers: int | None, seconds: float) -> tuple[float, str]:
    """Images a second of this process while all of its node read at once, once it is warm; and what the loader is.

    Raises DataError if the images cannot be read.
    """
    options = loader_options(processes, workers) | {"rank": processes.local_rank, "processes": processes.local_count}
    node = zlib.crc32(socket.gethostname().encode())  # nodes read in different orders, as in a run
    batches = open_train(data, batch_size=BATCH * processes.local_count, seed=node, **options)
    try:
        stream = (batch for epoch in itertools.count() for batch in batches.epoch(epoch))
        for _ in range(3):  # compiles, starts workers
            next(stream)
        processes.barrier()
        images, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds or not images:
            images += len(next(stream).labels)
        return images / spent, batches.describe()
    finally:
        batches.close()


def make_photos(root: Path, local_count: int) -> None:
    """A folder of JPEG files of about 110 kB, ImageNet's mean, enough for a batch of each process of a node."""
    folder = root / "train" / "photo"
    folder.mkdir(parents=True)
    files = [_photo(seed) for seed in range(DIFFERENT)]
    for number in range(2 * BATCH * local_count):
        (folder / f"{number:05d}.jpg").write_bytes(files[number % DIFFERENT])


def _photo(seed: int) -> bytes:
    """A JPEG file of coloured clouds, as detailed as a photo: noise of every scale, the finer the fainter."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((SIZE[1], SIZE[0], 3))
    for scale in (4, 8, 16, 32, 64, 128, 256, 512):  # grains across the picture
        grains = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
        pixels += (np.asarray(grains.resize(SIZE, Image.Resampling.BICUBIC)) - 127.5) / scale**0.2
    pixels = 127.5 + pixels * (64 / pixels.std())
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
