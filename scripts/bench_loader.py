"""Images per second of the loaders on the same JPEG files: random resized crop to 224 px and flip.

`python scripts/bench_loader.py FOLDER [FOLDER ...]`, each with train/CLASS/IMAGE below it, prints a table and writes it
to results/bench_loader.csv. Loaders run in processes of their own, one after another and round after round, since a
live loader slows others of its process; ratios are taken within a round, and their median is quoted.
"""

import argparse
import io
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

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from timm.data import create_dataset, create_loader  # noqa: E402

from data import DataConfig, WriteConfig, open_train  # noqa: E402
from data.files import load_sidecar  # noqa: E402
from data.splits import open_source  # noqa: E402
from data.writer import write_split  # noqa: E402
from scripts.benchmark import circumstances, in_a_process, write_table  # noqa: E402

Batches = Callable[[Path, int, int], Iterator[int]]  # folder, batch size, workers: sizes of batches, for ever
PACKAGES = ["torch", "timm", "pillow", "ffcv", "numba"]


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
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given)))
        return
    rows: list[dict[str, Any]] = []
    for folder in given.folders:
        rows += compare(folder, given)
        write_table(given.output, rows)


def compare(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for one folder, one per loader."""
    stored = load_sidecar(write_split(settings(folder, "ffcv"), "train"))
    print(f"{folder.name}: {stored.count} images, {stored.reencoded} of them not as their files are")
    options = [f"--{name}={getattr(given, name.replace('-', '_'))}" for name in ("batch-size", "workers", "batches")]
    results: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
    for number in range(given.rounds):
        for loader in LOADERS:
            result = in_a_process(__file__, str(folder), f"--measure={loader}", *options)
            results[loader].append(result)
            print(
                f"  round {number + 1} {loader:14} {result['rate']:7.0f} images/s, {result['cpu']:5.2f} ms", flush=True
            )
    folders = " ".join(name.name for name in given.folders)
    command = f"python scripts/bench_loader.py {folders} --rounds={given.rounds} {' '.join(options)}"
    return [row(folder, loader, results) | circumstances(command, PACKAGES) for loader in LOADERS]


def row(folder: Path, loader: str, results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds; also printed."""
    rates = [result["rate"] for result in results[loader]]
    milliseconds = median(result["cpu"] for result in results[loader])
    ratio = median(rate / timm["rate"] for rate, timm in zip(rates, results["timm"], strict=True))
    cpu_ratio = median(timm["cpu"] / own["cpu"] for own, timm in zip(results[loader], results["timm"], strict=True))
    print(
        f"{loader:14} {median(rates):7.0f} images/s, {ratio:.2f} times timm's; {milliseconds:.2f} ms of CPU per image"
    )
    return {
        "images": folder.name,
        "loader": loader,
        "images_per_second": round(median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
        "times_timm": round(ratio, 2),
        "cpu_ms_per_image": round(milliseconds, 3),
        "times_timm_by_cpu": round(cpu_ratio, 2),
    }


def measure(loader: str, given: argparse.Namespace) -> dict[str, float]:
    """Images per second and CPU milliseconds per image, after as many batches for compiling and starting workers."""
    batches = LOADERS[loader](given.folders[0], given.batch_size, given.workers)
    for _ in range(given.batches):
        next(batches)
    start, cpu_start = time.perf_counter(), cpu_seconds()
    images = sum(next(batches) for _ in range(given.batches))
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu_start
    return {"rate": images / seconds, "cpu": 1e3 * cpu / images}


def cpu_seconds() -> float:
    """Time that this process and its workers have spent computing: other people's load hardly changes it."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user, system
    return total


def settings(folder: Path, loader: str) -> DataConfig:
    """Stored with a limit that usual photos are below: the very bytes of the files."""
    return DataConfig(name="folder", root=str(folder), loader=loader, write=WriteConfig(max_size=1024))


def ours(loader: str) -> Batches:
    """Our loader."""

    def batches(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
        train = open_train(settings(folder, loader), batch_size=batch_size, seed=0, workers=workers)
        for epoch in count():
            yield from (len(batch.labels) for batch in train.epoch(epoch))

    return batches


def timm_batches(folder: Path, batch_size: int, workers: int, prefetcher: bool = False) -> Iterator[int]:
    """timm's loader with the same augmentation. Its workers normalise and hand over float32."""
    loader = create_loader(
        create_dataset("", root=str(folder), split="train", is_training=True),
        input_size=(3, 224, 224),
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
    )
    source: Iterable = loader.loader if prefetcher else loader
    for _ in count():
        yield from (len(labels) for _, labels in source)


def timm_uint8(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """The uint8 batches that timm's prefetcher, made for GPUs, receives from the workers."""
    return timm_batches(folder, batch_size, workers, prefetcher=True)


def bare_decoding(folder: Path, batch_size: int, workers: int) -> Iterator[int]:
    """FFCV's JPEG decoder alone, in threads, from memory: the bound for any loader that decodes whole images."""
    from ffcv.libffcv import imdecode

    source = open_source(settings(folder, "ffcv"), "train")
    files = [source.encoded(i) or b"" for i in range(min(len(source), 2000))]
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    jpegs = [np.frombuffer(file, np.uint8) for file in files]

    def decode(first: int) -> int:
        pixels = np.empty(3 * max(width * height for width, height in sizes), np.uint8)
        for i in range(first, first + batch_size):
            width, height = sizes[i % len(jpegs)]
            imdecode(jpegs[i % len(jpegs)], pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        return batch_size

    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(decode, n * batch_size) for n in range(workers)]
        for n in count(workers):
            waiting.append(pool.submit(decode, n * batch_size))
            yield waiting.pop(0).result()


LOADERS: dict[str, Batches] = {
    "timm": timm_batches,
    "timm_uint8": timm_uint8,
    "ffcv": ours("ffcv"),
    "torch": ours("torch"),
    "bare_decoding": bare_decoding,
}

if __name__ == "__main__":
    main()
