"""Time of receptive fields: ours against openerf, the package of the GAB paper's first author, on the same images.

`python scripts/bench_erf.py` prints a table and writes results/bench_erf.csv. The two take turns, round after round, in
one process that has measured once before; medians are quoted, and the ratio is taken within a round. openerf takes an
image at a time. The weights are random, which changes no time. On a GPU: `--device cuda`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import timm
import torch
from torch import Tensor, nn

import gab  # noqa: F401  (registers the models)
from gab.evaluators.erf import effective_receptive_field
from scripts.bench.tables import circumstances, write_table

NETWORKS = ("vit_small_patch16_224", "vit_relpos_small_patch16_gab_224")
SIDE = 224  # of the images, pixels


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="timm's names")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_erf.csv")
    given = parser.parse_args()
    options = f"--networks {' '.join(given.networks)} --device {given.device} --images {given.images}"
    command = f"python scripts/bench_erf.py {options} --rounds {given.rounds}"
    rows = []
    for name in given.networks:
        ours, theirs, difference = compare(name, given.images, given.rounds, torch.device(given.device))
        ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"{name:36} ours {median(ours):.2f} s, openerf {median(theirs):.2f} s, {ratio:.2f} times as fast")
        row = {"network": name, "images": given.images, "rounds": given.rounds, "threads": torch.get_num_threads()}
        row |= {"seconds": round(median(ours), 3), "openerf_seconds": round(median(theirs), 3)}
        row |= {"times_as_fast": round(ratio, 3), "largest_difference": f"{difference:.1e}"}
        rows.append(row | circumstances(command, ["torch", "timm", "openerf"]))
    write_table(given.output, rows)


def compare(name: str, count: int, rounds: int, device: torch.device) -> tuple[list[float], list[float], float]:
    """Seconds of each round, ours and openerf's, and how far the maps are apart, as a share of the largest value."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device).eval()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # all alike, the mean over channels would be a constant
    images = torch.randn(count, 3, SIDE, SIDE, device=device)
    ways: list[Callable[[], Tensor]] = [
        lambda: torch.from_numpy(effective_receptive_field(model, images).maps[0]),
        lambda: by_openerf(model, images),
    ]
    seconds: list[list[float]] = [[], []]
    maps = [timed(way)[1] for way in ways]
    for _ in range(rounds):
        for own, way in zip(seconds, ways, strict=True):
            own.append(timed(way)[0])
    first, second = (one / one.sum() for one in maps)
    return seconds[0], seconds[1], float((first - second).abs().max() / second.max())


def by_openerf(model: nn.Module, images: Tensor) -> Tensor:
    """The sum over images of their maps (H, W)."""
    from openerf.erf import _compute_positive_input_gradients_from_forward_features as of_an_image

    total = torch.zeros(images.shape[-2:], dtype=torch.float64)
    for image in images.split(1):
        total += of_an_image(model, image.clone().requires_grad_(), "forward_features").cpu()
    return total


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and the result, which lies on the host."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
