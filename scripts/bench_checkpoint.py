"""What checkpoints cost the training loop: the time that `save` keeps it, and how much the steps slow down meanwhile.

`python scripts/bench_checkpoint.py` trains ViT-B/16 with GAB, AdamW and EMA (about 1.4 GB of state) on random images,
saves by the project's own `CheckpointStore`, and writes results/bench_checkpoint.csv. The cost is what the loop lost,
as a share of the default interval between two checkpoints. On a GPU: `--device cuda --batch-size 256 --steps 60`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import timm
import torch
from torch import nn

import gab  # noqa: F401  (registers the models)
from gab.config import CheckpointConfig
from gab.training.average import Average
from gab.training.checkpoint_store import CheckpointStore
from gab.training.state import TrainState
from scripts.bench.tables import circumstances, write_table


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="that are timed without a checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="checkpoints")
    parser.add_argument("--folder", help="where the checkpoints go (default: a temporary folder)")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_checkpoint.csv")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        row = measure(given, Path(folder))
    options = f"--device {given.device} --batch-size {given.batch_size} --steps {given.steps} --rounds {given.rounds}"
    write_table(given.output, [row | circumstances(f"python scripts/bench_checkpoint.py {options}", ["torch", "timm"])])


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: medians over the rounds, in seconds."""
    state, step = training(torch.device(given.device), given.batch_size)
    for _ in range(3):
        step()
    free = median(_timed(step) for _ in range(given.steps))
    store = CheckpointStore(folder / "checkpoints", keep=1, check=lambda: None)
    kept, written, lost = [], [], []
    for number in range(given.rounds):
        state.step = number
        started = time.perf_counter()
        kept.append(_timed(lambda: store.save(state.state_dict())))
        steps = []
        while not store.idle:
            steps.append(_timed(step))
        written.append(time.perf_counter() - started)
        store.wait()
        lost.append(kept[-1] + sum(max(seconds - free, 0.0) for seconds in steps))
        print(
            f"  kept {kept[-1]:.2f} s, written in {written[-1]:.1f} s beside {len(steps)} steps, lost {lost[-1]:.2f} s"
        )
    size = store.last.stat().st_size
    minutes = CheckpointConfig().every_minutes
    assert minutes
    share = 100 * median(lost) / (60 * minutes)
    print(f"{size / 1e9:.2f} GB: the loop loses {median(lost):.2f} s, {share:.2f} % of {minutes:g} minutes")
    return {
        "gigabytes": round(size / 1e9, 3),
        "step_seconds": round(free, 3),
        "kept_seconds": round(median(kept), 3),
        "written_seconds": round(median(written), 2),
        "lost_seconds": round(median(lost), 3),
        "percent_of_default_interval": round(share, 3),
        "rounds": given.rounds,
        "batch_size": given.batch_size,
    }


def training(device: torch.device, batch: int) -> tuple[TrainState, Callable[[], None]]:
    """The state of a ViT-B/16 with GAB, and its train step."""
    torch.manual_seed(0)
    model = timm.create_model("vit_relpos_base_patch16_gab_224").to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ema = Average(model)
    images = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(2)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return TrainState(model, optimizer, ema, torch.zeros((), dtype=torch.int64)), step


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
