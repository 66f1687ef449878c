"""Images per second of the loaders on the same JPEG files: random resized crop to 224 px and flip, or a full recipe.

`python scripts/bench_loader.py FOLDER [FOLDER ...]`, each with train/CLASS/IMAGE below it, prints a table and writes it
to results/bench_loader.csv. Loaders run in processes of their own, one after another and round after round, since a
live loader slows others of its process; ratios are taken within a round, and their median is quoted.

Rows are of two recipes: `plain` is crop and flip; `full` adds RandAugment (rand-m9-mstd0.5-inc1), random erasing, mixup
and cutmix, which timm does in its workers and `ffcv` on the CPU after loading; `ffcv_alone` leaves them to a GPU.
`ffcv_raw` reads pixels that were stored undecoded. Where files were dropped from the page cache first, `cache` is cold;
that needs more images than are measured.

The last columns say where CPU time goes, in ms per image and one thread: `cut` copies bytes out of the file, `entropy`
reads its code, `pixels` makes colours of coefficients, `resize` resamples. The rest is copies and hand-over.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_dataset, create_loader

from data import DataConfig, WriteConfig, open_train
from data.beton import read_samples
from data.files import load_sidecar, train_beton
from data.order import draw_crops
from data.splits import open_source
from data.writer import write_split
from gab.augment import Augment
from gab.config import AugmentConfig, RandAugmentConfig
from scripts.bench.processes import in_a_process
from scripts.bench.tables import circumstances, write_table

Batches = Callable[[Path, int, int], Iterator[int]]  # folder, batch size, workers: sizes of batches, for ever
PACKAGES = ["torch", "timm", "pillow", "ffcv", "numba"]
COLD_START = 2  # batches for compiling and starting workers, where others are to be new
SIZE, CLASSES = 224, 1000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="that are timed in each measurement")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_loader.csv")
    parser.add_argument("--measure", choices=LOADERS, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--cold", type=int, help=argparse.SUPPRESS)  # images of the folder
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given)))
        return
    rows: list[dict[str, Any]] = []
    for folder in given.folders:
        rows += compare(folder, given)
        write_table(given.output, rows)


def compare(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for one folder, one per loader and state of the cache."""
    write_split(settings(folder, "ffcv", "raw"), "train")
    stored = load_sidecar(write_split(settings(folder, "ffcv"), "train"))
    print(f"{folder.name}: {stored.count} images, {stored.reencoded} of them not as their files are")
    cases = [(loader, "warm") for loader in LOADERS]
    if new_batches(stored.count, given) > 0 and drop_cache(folder):
        cases += [(loader, "cold") for loader in COLD]
    else:
        print("  nothing is measured cold: too few images, or the page cache cannot be dropped")
    options = [f"--{name}={getattr(given, name.replace('-', '_'))}" for name in ("batch-size", "workers", "batches")]
    results: dict[tuple[str, str], list[dict[str, float]]] = {case: [] for case in cases}
    for number in range(given.rounds):
        for loader, cache in cases:
            cold = [f"--cold={stored.count}"] if cache == "cold" else []
            result = in_a_process(__file__, str(folder), f"--measure={loader}", *options, *cold)
            results[loader, cache].append(result)
            print(
                f"  {number + 1} {loader:14} {cache} {result['rate']:7.0f} images/s, {result['cpu']:5.2f} ms",
                flush=True,
            )
    folders = " ".join(name.name for name in given.folders)
    command = f"python scripts/bench_loader.py {folders} --rounds={given.rounds} {' '.join(options)}"
    where = parts(folder)
    return [
        row(folder, case, results) | where.get(case[0], NO_PARTS) | circumstances(command, PACKAGES) for case in cases
    ]


def row(folder: Path, case: tuple[str, str], results: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds; also printed. Ratios are to timm's loader, of the same recipe and cache."""
    loader, cache = case
    recipe, own = LOADERS[loader][0], results[case]
    timm = results["timm" if recipe == "plain" else "timm_full", cache]
    rates = [result["rate"] for result in own]
    milliseconds = median(result["cpu"] for result in own)
    ratio = median(a["rate"] / b["rate"] for a, b in zip(own, timm, strict=True))
    cpu_ratio = median(b["cpu"] / a["cpu"] for a, b in zip(own, timm, strict=True))
    print(f"{loader:14} {cache} {median(rates):7.0f} images/s, {ratio:.2f} times timm's; {milliseconds:.2f} ms of CPU")
    return {
        "images": folder.name,
        "recipe": recipe,
        "loader": loader,
        "cache": cache,
        "images_per_second": round(median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "times_timm": round(ratio, 2),
        "cpu_ms_per_image": round(milliseconds, 3),
        "times_timm_by_cpu": round(cpu_ratio, 2),
    }


def new_batches(images: int, given: argparse.Namespace) -> int:
    """Batches that can be timed before any image comes a second time."""
    return min(given.batches, images // given.batch_size - COLD_START)


def measure(loader: str, given: argparse.Namespace) -> dict[str, float]:
    """Images per second and CPU milliseconds per image, after some batches for compiling and starting workers."""
    if given.cold:
        drop_cache(given.folders[0])
    batches = LOADERS[loader][1](given.folders[0], given.batch_size, given.workers)
    for _ in range(COLD_START if given.cold else given.batches):
        next(batches)
    timed = new_batches(given.cold, given) if given.cold else given.batches
    start, cpu_start = time.perf_counter(), cpu_seconds()
    images = sum(next(batches) for _ in range(timed))
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    return {"rate": images / seconds, "cpu": 1e3 * cpu / images}


def cpu_seconds() -> float:
    """Time that this process and its workers have spent computing: other people's load hardly changes it."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user, system
    return total


def drop_cache(folder: Path) -> bool:
    """Drop the files below `folder` from the page cache; returns whether nearly all are gone."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return sum(map(is_cached_still, files)) < 0.05 * len(files)


def is_cached_still(path: Path) -> bool:
    """Drop one file from the page cache; returns whether it is there nevertheless."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not on the disk yet stays
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) > 0
        except OSError:  # it would have to wait, or the file system cannot tell
            return False
        finally:  # the question has begun to read the file, on a quick disk even before the answer
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def settings(folder: Path, loader: str, mode: str = "jpg") -> DataConfig:
    """Stored with a limit that usual photos are below: as their files are, or all their pixels."""
    write = WriteConfig(mode=mode, max_size=1024)
    return DataConfig(name="folder", root=str(folder), loader=loader, image_size=SIZE, write=write)


def ours(loader: str, recipe: str = "plain", mode: str = "jpg") -> Batches:
    """Our loader, and the recipe on the CPU."""

    def batches(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
        data = settings(folder, loader, mode)
        train = open_train(data, batch_size=batch_size, seed=0, workers=workers)
        device = torch.device("cpu")
        augment = Augment(full_recipe(), seed=0, mean=data.mean, std=data.std, device=device)
        for epoch in count():
            for step, batch in enumerate(train.epoch(epoch)):
                if recipe == "full":
                    augment(batch.images, batch.labels, batch.indices, epoch=epoch, step=step, first=0)
                yield len(batch.labels)

    return batches


def full_recipe() -> AugmentConfig:
    """DeiT's augmentation, without repeats."""
    return AugmentConfig(randaugment=RandAugmentConfig(layers=2), erase_prob=0.25, mixup=0.8, cutmix=1.0)


def timm_batches(
    folder: Path, batch_size: int, workers: int, prefetcher: bool = False, full: bool = False
) -> Iterator[int]:
    """timm's loader with the same augmentation. Its workers normalise and hand over float32."""
    recipe: dict[str, Any] = (
        {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"} if full else {}
    )
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES) if full else None
    loader = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True),
        input_size=(3, SIZE, SIZE),
        batch_size=batch_size,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        color_jitter=0.0,
        interpolation="random",
        num_workers=workers,
        use_prefetcher=prefetcher,
        device=torch.device("cpu"),
        **recipe,
    )
    source: Iterable = loader.loader if prefetcher else loader
    for _ in count():
        for images, labels in source:
            if mixup:
                mixup(images, labels)
            yield len(labels)


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm 1.0's, which Pillow 13 refuses for the 0 bits of the largest magnitude: black, as older versions made it."""
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)


def timm_uint8(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """The uint8 batches that timm's prefetcher, made for GPUs, receives from the workers."""
    return timm_batches(folder, batch_size, workers, prefetcher=True)


def timm_full(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """RandAugment and erasing in the workers, mixing after them."""
    return timm_batches(folder, batch_size, workers, full=True)


def originals(folder: Path) -> list[tuple[np.ndarray, int, int]]:
    """The bytes of the first 2000 files, and the height and width of each image."""
    source = open_source(settings(folder, "ffcv"), "train")
    chosen = range(min(len(source), 2000))
    sizes = [source.image(i).size for i in chosen]
    return [
        (np.frombuffer(source.encoded(i) or b"", np.uint8), height, width)
        for i, (width, height) in zip(chosen, sizes, strict=True)
    ]


def bare_decoding(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """FFCV's JPEG decoder alone, in threads, from memory: the bound for any loader that decodes whole images."""
    from ffcv.libffcv import imdecode

    jpegs = originals(folder)

    def decode(first: int) -> int:
        pixels = np.empty(3 * max(height * width for _, height, width in jpegs), np.uint8)
        for i in range(first, first + batch_size):
            jpeg, height, width = jpegs[i % len(jpegs)]
            imdecode(jpeg, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        return batch_size

    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(decode, n * batch_size) for n in range(workers)]
        for n in count(workers):
            waiting.append(pool.submit(decode, n * batch_size))
            yield waiting.pop(0).result()


NO_PARTS = dict.fromkeys(("cut_ms", "entropy_ms", "pixels_ms", "resize_ms"), "")


def parts(folder: Path) -> dict[str, dict[str, Any]]:
    """CPU milliseconds per image of every part, of our loader and of decoding whole files."""
    from data import turbojpeg
    from data.cut import cut
    from data.resample import resize_crop

    data = settings(folder, "ffcv")
    samples, sizes = read_samples(train_beton(data))
    content = np.memmap(train_beton(data), np.uint8, "r")
    decoder, clock, out = turbojpeg.new_decoder(), Clock(), np.empty((SIZE, SIZE, 3), np.uint8)
    spent = {"ffcv": np.zeros(4), "bare_decoding": np.zeros(4)}
    files = originals(folder)
    for n in range(-3, len(files)):  # the first are for compiling
        jpeg, height, width = files[max(n, 0)]
        (crop,) = draw_crops(data.crop, 0, 0, max(n, 0), height, width).tolist()
        top, left, box_height, box_width, flip, bicubic = crop
        at = int(samples["image"]["data_ptr"][max(n, 0)])
        stored = np.array(content[at : at + sizes[max(n, 0)]])
        buffer, pixels = np.empty(len(stored), np.uint8), np.empty(3 * height * width, np.uint8)
        clock.lap()
        size, y, x, h, w = cut(stored, height, width, top, left, box_height, box_width, buffer)
        cutting = clock.lap()
        part = buffer[:size] if size else stored
        turbojpeg.decode(decoder, part, -(-h // 8), -(-w // 8), pixels)  # makes one pixel of a block: hardly any work
        entropy = clock.lap()
        turbojpeg.decode(decoder, part, h, w, pixels)
        decoding = clock.lap()
        image = pixels[: 3 * h * w].reshape(h, w, 3)
        clock.lap()
        resize_crop(image, top - y, left - x, box_height, box_width, bool(bicubic), bool(flip), out)
        resizing = clock.lap()
        turbojpeg.decode(decoder, jpeg, -(-height // 8), -(-width // 8), pixels)
        whole_entropy = clock.lap()
        turbojpeg.decode(decoder, jpeg, height, width, pixels)
        whole = clock.lap()
        if n >= 0:
            spent["ffcv"] += cutting, entropy, decoding - entropy, resizing
            spent["bare_decoding"] += 0, whole_entropy, whole - whole_entropy, 0
    turbojpeg.free_decoder(decoder)
    result = {}
    for loader, times in spent.items():
        result[loader] = dict(zip(NO_PARTS, (1e3 * times / len(files)).round(3).tolist(), strict=True))
        print(f"  {loader:14} {result[loader]}")
    return result


class Clock:
    """CPU time of this thread."""

    def __init__(self) -> None:
        self.at = time.thread_time()

    def lap(self) -> float:
        """Seconds since the call before."""
        before, self.at = self.at, time.thread_time()
        return self.at - before


LOADERS: dict[str, tuple[str, Batches]] = {
    "timm": ("plain", timm_batches),
    "timm_uint8": ("plain", timm_uint8),
    "ffcv": ("plain", ours("ffcv")),
    "ffcv_raw": ("plain", ours("ffcv", mode="raw")),
    "torch": ("plain", ours("torch")),
    "bare_decoding": ("plain", bare_decoding),
    "timm_full": ("full", timm_full),
    "ffcv_full": ("full", ours("ffcv", "full")),
    "ffcv_alone": ("full", ours("ffcv")),
}
COLD = ("timm", "ffcv", "torch")

if __name__ == "__main__":
    main()
