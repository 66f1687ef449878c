"""Images per second of the augmentation on the device, part by part and in whole recipes, on windows of photographs.

`python scripts/bench_augment.py` prints a table and writes results/bench_augment.csv. Every part is measured in a
process of its own, in turn, round after round; the median over rounds is quoted, and its share of a train step of
ViT-S/16 (scripts/bench_step.py, same device and batch, in the same rounds). Every part normalises too. On a GPU:
`--device cuda --batch-size 256 --steps 50`. `--operations` adds every single operation, done to all images.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import torch
from hydra import compose, initialize_config_dir
from sklearn.datasets import load_sample_images
from torch import Tensor

from conf.schema import typed
from gab.augment import Augment
from gab.augment.operations import Layer, Op
from gab.config import AugmentConfig, RandAugmentConfig
from scripts.bench.processes import in_a_process
from scripts.bench.tables import circumstances, write_table

OFF: dict[str, Any] = {"erase_prob": 0.0, "mixup": 0.0, "cutmix": 0.0}
PARTS: dict[str, dict[str, Any]] = {
    "normalise": {},
    "RandAugment": {"randaugment": RandAugmentConfig(layers=2)},
    "3-Augment": {"three_augment": True},
    "colour jitter": {"color_jitter": 0.4},
    "rotation": {"rotation": 15.0},
    "erasing": {"erase_prob": 0.25},
    "mixup and CutMix": {"mixup": 0.8, "cutmix": 1.0},
}
RECIPES = ("gab", "deit", "deit3", "gab_finetune")  # files of conf/augment
STEP = "train step of ViT-S/16"
ARGUMENTS = {Op.ROTATE: 20, Op.POSTERIZE: 2, Op.SOLARIZE: 50, Op.SOLARIZE_ADD: 90, Op.BLUR: 1.5}  # others: 0.3


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="that are timed in each measurement")
    parser.add_argument("--operations", action="store_true", help="add every single operation")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_augment.csv")
    parser.add_argument("--measure", metavar="PART", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given)))
        return
    options = [f"--{key}={getattr(given, key.replace('-', '_'))}" for key in ("device", "batch-size", "steps")]
    names = [*PARTS, *(f"augment={name}" for name in RECIPES), *(operations() if given.operations else [])]
    results: dict[str, list[float]] = {name: [] for name in (STEP, *names)}
    for number in range(given.rounds):
        results[STEP].append(step_seconds(options))
        for name in names:
            results[name].append(
                in_a_process(__file__, *options, f"--image-size={given.image_size}", "--measure", name)
            )
            print(f"  round {number + 1} {name:24} {1e3 * results[name][-1]:8.2f} ms", flush=True)
    command = f"python scripts/bench_augment.py --rounds {given.rounds} --image-size={given.image_size} "
    write_table(given.output, rows(results, given, command + " ".join(options)))


def operations() -> list[str]:
    """Names of parts for single operations."""
    moving = (Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y)
    names = [[f"{op.name} {taps}" for taps in (2, 4)] if op in moving else [f"{op.name} 2"] for op in Op]
    return list(itertools.chain.from_iterable(names))


def rows(results: dict[str, list[float]], given: argparse.Namespace, command: str) -> list[dict[str, Any]]:
    """The rows of the table; prints them too."""
    about = circumstances(command + (" --operations" if given.operations else ""), ["torch", "timm"])
    table = []
    for name, seconds in results.items():
        share = median(own / step for own, step in zip(seconds, results[STEP], strict=True))
        rate = given.batch_size / median(seconds)
        print(f"{name:24} {1e3 * median(seconds):9.2f} ms {rate:10.1f} images/s, {100 * share:6.2f} % of a train step")
        row = {"device": given.device, "part": name, "milliseconds": round(1e3 * median(seconds), 3)}
        row |= {"images_per_second": round(rate, 1), "share_of_step": round(share, 5)}
        row |= {"batch_size": given.batch_size, "image_size": given.image_size, "rounds": given.rounds}
        table.append(row | about)
    return table


def step_seconds(options: list[str]) -> float:
    """Seconds of a train step of ViT-S/16, at 224 px."""
    form = "compiled" if "--device=cuda" in options else "eager"
    script = str(ROOT / "scripts" / "bench" / "step_worker.py")
    return in_a_process(script, "gab_small", "timm plain vit_small", form, *options)["seconds"]


def measure(name: str, given: argparse.Namespace) -> float:
    """Mean seconds per batch, the device's queue kept full."""
    device, batch = torch.device(given.device), given.batch_size
    mean, std, compiled = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], given.device == "cuda"
    augment = Augment(settings(name), seed=0, mean=mean, std=std, device=device, compile=compiled)
    if name in operations():
        op, taps = name.split()
        arg = ARGUMENTS.get(Op[op], 0.3)
        alike = torch.full((batch,), Op[op]), torch.full((batch,), arg).double(), torch.full((batch,), int(taps))
        augment.layers = lambda keys, epoch: [Layer(*alike, augment.fill)]  # type: ignore[method-assign]
    images, labels = photographs(batch, given.image_size).to(device), torch.zeros(batch, dtype=torch.int64).to(device)

    def run(steps: range) -> None:
        for step in steps:
            keys = torch.arange(batch * step, batch * (step + 1))
            augment(images, labels, keys, epoch=0, step=step, first=0)
        if device.type == "cuda":
            torch.cuda.synchronize()

    if compiled:
        augment.warm_up(batch, given.image_size)  # what is rarely drawn too
    run(range(3))
    started = time.perf_counter()
    run(range(3, 3 + given.steps))
    return (time.perf_counter() - started) / given.steps


def settings(name: str) -> AugmentConfig:
    """The augmentation settings of a part."""
    if not name.startswith("augment="):
        return AugmentConfig(**OFF | PARTS.get(name, {}))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose("train", [name, "model=vit_s16", "data=digits"])).augment


def photographs(count: int, size: int) -> Tensor:
    """uint8 (count, 3, size, size), in memory as loaders leave them."""
    images = [torch.tensor(photo) for photo in load_sample_images().images]
    windows = []
    for number in range(count):
        photo = images[number % len(images)]
        top, left = (31 * number) % (photo.shape[0] - size), (47 * number) % (photo.shape[1] - size)
        windows.append(photo[top : top + size, left : left + size])
    return torch.stack(windows).permute(0, 3, 1, 2)


if __name__ == "__main__":
    main()
