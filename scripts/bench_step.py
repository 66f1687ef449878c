"""Time of a train step (forward, loss, backward, AdamW) on random images: a network with an idea and without it.

`python scripts/bench_step.py` prints a table and writes results/bench_step.csv. Every network is measured in processes
of its own, in turn, round after round; a ratio is taken within a round against the first network of its group, and the
median over rounds is quoted. On a GPU: `--device cuda --batch-size 256 --steps 30`, which adds the compiled forms.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import timm  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

import gab  # noqa: E402,F401  (registers the models)
from gab.models.registry import REGISTERED  # noqa: E402
from gab.models.stochastic import attach_keys  # noqa: E402
from gab.training.determinism import make_deterministic  # noqa: E402
from gab.training.flops import macs  # noqa: E402
from scripts.benchmark import circumstances, in_a_process, write_table  # noqa: E402

# Name in the table: name and options of timm's create_model. The first of a group is what the others are compared with.
Network = tuple[str, dict[str, Any]]
GROUPS: dict[str, dict[str, Network]] = {
    **{
        f"gab_{size}": {
            f"ViT-{size}, RelPosMlp": (f"vit_relpos_{size}_patch16_gab_224", {"gab": False}),
            f"ViT-{size}, RelPosMlp + GAB": (f"vit_relpos_{size}_patch16_gab_224", {}),
            f"timm vit_relpos_{size}": (f"vit_relpos_{size}_patch16_224", {}),
            f"timm plain vit_{size}": (f"vit_{size}_patch16_224", {}),
        }
        for size in ("small", "base")
    },
    **{
        f"deit_{size}": {
            f"DeiT-{size}": (f"deit_{size}_patch16_lape_224", {"join": "add"}),
            f"DeiT-{size} + LaPE": (f"deit_{size}_patch16_lape_224", {}),
            f"DeiT-{size} + LIFE": (f"deit_{size}_patch16_life_224", {}),
            f"DeiT-{size} + GAB": (f"deit_{size}_patch16_lape_224", {"join": "add", "gab": True}),
            f"DeiT-{size} + LaPE + LIFE + GAB": (f"deit_{size}_patch16_life_224", {"join": "lape", "gab": True}),
        }
        for size in ("tiny", "small", "base")
    },
    "swinv2_tiny": {
        "Swin-V2-T": ("swinv2_tiny_window8_life_256", {"life": False}),
        "Swin-V2-T + LIFE": ("swinv2_tiny_window8_life_256", {}),
    },
    "vitae_tiny": {"T2T-ViT-7": ("t2t_vit_7", {}), "ViTAE-T": ("vitae_tiny", {})},
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=["gab_small"], choices=list(GROUPS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="that are timed in each measurement")
    parser.add_argument("--deterministic", action="store_true", help="add the price of run.deterministic=true")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_step.csv")
    parser.add_argument("--measure", nargs=3, metavar=("GROUP", "NETWORK", "FORM"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        group, name, form = given.measure
        print(json.dumps(measure(GROUPS[group][name], form, given)))
        return
    forms = ["eager", "compiled"] if given.device == "cuda" else ["eager"]
    if given.deterministic:
        forms += [f"{form}, deterministic" for form in forms]
    rows = [row for group in given.groups for form in forms for row in compare(group, form, given)]
    write_table(given.output, rows)


def compare(group: str, form: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for all networks of one group in one form."""
    names = list(GROUPS[group])
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    options = [f"--{k}={getattr(given, k.replace('-', '_'))}" for k in ("device", "batch-size", "steps")]
    for number in range(given.rounds):
        for name in names:
            results[name].append(in_a_process(__file__, *options, "--measure", group, name, form))
            print(f"  round {number + 1} {form} {name:36} {1e3 * results[name][-1]['seconds']:8.1f} ms", flush=True)
    command = (
        f"python scripts/bench_step.py --groups {' '.join(given.groups)} --rounds {given.rounds} {' '.join(options)}"
        f"{' --deterministic' if given.deterministic else ''}"
    )
    rows = []
    for name in names:
        seconds = [r["seconds"] for r in results[name]]
        pairs = list(zip(results[name], results[names[0]], strict=True))
        ratio, cpu_ratio = (median(own[key] / first[key] for own, first in pairs) for key in ("seconds", "cpu"))
        print(
            f"{name:36} {form:8} {1e3 * median(seconds):8.1f} ms, {ratio:.3f} of the first, {cpu_ratio:.3f} by CPU time"
        )
        row: dict[str, Any] = {"group": group, "network": name, "form": form}
        row |= {"parameters": results[name][0]["parameters"], "gmacs": round(results[name][0]["macs"] / 1e9, 3)}
        row |= {"milliseconds": round(1e3 * median(seconds), 2), "ratio": round(ratio, 4)}
        row |= {"cpu_ratio": round(cpu_ratio, 4)}  # other people's load on the machine hardly changes it
        row |= {"images_per_second": round(given.batch_size / median(seconds), 1)}
        row |= {"peak_memory_gib": round(max(r["memory"] for r in results[name]) / 2**30, 3)}
        row |= {"batch_size": given.batch_size, "rounds": given.rounds}
        rows.append(row | circumstances(command, ["torch", "timm"]))
    return rows


def measure(network: Network, form: str, given: argparse.Namespace) -> dict[str, float]:
    """Seconds of the fastest step, processor seconds of the mean step, and peak memory: the device's, or on the CPU
    what the steps added to the process."""
    device, batch = torch.device(given.device), given.batch_size
    torch.manual_seed(0)
    name, options = network
    model = timm.create_model(name, drop_path_rate=0.1, **options).to(device).train()
    settings = timm.get_pretrained_cfg(name, allow_unregistered=False)
    assert settings is not None
    side = settings.input_size[1]
    size = {"parameters": sum(p.numel() for p in model.parameters()), "macs": macs(model, side)}
    keys = attach_keys(model, 0, device) if name in REGISTERED else None  # timm's draw as timm's do
    if "deterministic" in form:
        make_deterministic(True)
    if "compiled" in form:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def step(number: int) -> None:
        if keys:
            keys.set(0, number, torch.arange(batch))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    before = _resident()
    for number in range(2 if device.type == "cpu" else 10):
        step(number)
    cpu = time.process_time()
    times = [_timed(partial(step, number), device) for number in range(given.steps)]
    cpu = (time.process_time() - cpu) / given.steps
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() - before
    return {"seconds": min(times), "cpu": cpu, "memory": memory, **size}


def _resident() -> int:
    """Most bytes of memory that this process has held at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
