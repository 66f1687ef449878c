"""Time and memory of attention with a learned bias, alone: our backends, PyTorch's attention with and without the bias,
FlexAttention, and what the operations and the bytes at least take.

`python scripts/bench_attention.py --device cuda` prints a table and writes results/bench_attention.csv, shape by shape.
Every form has a process of its own, which stays; they are measured in turn, round after round. A ratio is taken within
a round against PyTorch's attention without a bias (its flash kernel, where that can), and the median over rounds is
quoted. A process that fails is left out. On a CPU it only shows that it runs, and writes nothing.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script also runs where the project is not installed

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer

from gab.attention import biased_attention
from gab.attention.choice import check
from gab.errors import UserError
from gab.models.stochastic import AttentionDropout
from scripts.bench.processes import Served, serve
from scripts.bench.tables import circumstances, update_table


class Shape(NamedTuple):
    """Images of a batch, windows of an image, heads, tokens, channels of a head."""

    images: int
    windows: int
    heads: int
    tokens: int
    depth: int


SHAPES = {
    "ViT-S/16": Shape(256, 1, 6, 196, 64),
    "ViT-B/16": Shape(256, 1, 12, 196, 64),
    "ViT-B/16, class token": Shape(256, 1, 12, 197, 64),
    "ViT-B/16, 384 px": Shape(64, 1, 12, 576, 64),
    "ViT-B/16, 512 px": Shape(32, 1, 12, 1024, 64),
    "Swin-S, first stage": Shape(128, 64, 3, 49, 32),
    "Swin-S, third stage": Shape(128, 4, 12, 49, 32),
}
FORMS = ("no bias", "fused", "sdpa", "reference", "flex")  # the first is what the others are compared with
FLASH_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRODUCTS = {"forward": 2, "backward": 5, "both": 7}  # matrix products that they take at least
TARGET = 1.25  # most of `both_ratio` for 196 tokens and 64 channels


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--forms", nargs="+", default=list(FORMS[1:]), choices=FORMS[1:])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--dropout", type=float, default=0.0, help="of the weights, which FlexAttention has not")
    parser.add_argument("--images", type=int, help="in place of a shape's own number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a measurement lasts")
    parser.add_argument("--budget-seconds", type=float, help="that the whole call may take")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_attention.csv")
    parser.add_argument("--serve", choices=FORMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, lambda name: measure(sized(name, given), given.serve, given))
        return
    deadline = time.monotonic() + given.budget_seconds if given.budget_seconds else None
    running = {
        form: Served(__file__, *options(given), f"--serve={form}", deadline=deadline) for form in possible(given)
    }
    try:
        rows: list[dict[str, Any]] = []
        for name in given.shapes:
            rows += compare(name, running, given)
            if given.device == "cuda":
                update_table(given.output, rows, ("shape", "images", "dtype", "dropout", "form", "gpu"))
    finally:
        for served in running.values():
            served.close()
    if given.device == "cuda":
        check_target(rows)


def possible(given: argparse.Namespace) -> list[str]:
    """Forms that there can be on this machine; the first is always measured."""
    forms = [form for form in (FORMS[0], *given.forms) if not (form == "flex" and given.dropout)]
    try:
        check("fused", given.device)
    except UserError as error:
        print(error)
        forms = [form for form in forms if form != "fused"]
    return forms


def options(given: argparse.Namespace) -> list[str]:
    """Command-line options for the process that measures a form."""
    images = [f"--images={given.images}"] if given.images else []
    return [f"--{k}={getattr(given, k)}" for k in ("device", "dtype", "dropout", "seconds")] + images


def sized(name: str, given: argparse.Namespace) -> Shape:
    """The shape of that name, with `--images`."""
    return SHAPES[name]._replace(images=given.images or SHAPES[name].images)


def compare(name: str, running: dict[str, Served], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for all forms of one shape, without those that failed in a round."""
    results: dict[str, list[dict[str, Any]]] = {form: [] for form in running}
    for _ in range(given.rounds):
        for form, served in running.items():
            results[form].append(served.ask(name))
    rows = []
    for form, measured in results.items():
        if None in measured or None in results[FORMS[0]]:
            print(f"{name:22} {form:10} it has ended or was too slow", flush=True)
            continue
        rows.append(row(name, form, measured, results[FORMS[0]], given))
        print(sentence(rows[-1]), flush=True)
    return rows


def row(
    name: str, form: str, measured: list[dict[str, Any]], first: list[dict[str, Any]], given: argparse.Namespace
) -> dict[str, Any]:
    """One line of the table."""
    shape, dtype = sized(name, given), DTYPES[given.dtype]
    found: dict[str, Any] = {"shape": name, **shape._asdict(), "dtype": given.dtype, "dropout": given.dropout}
    found |= {"form": form, "backend": measured[0]["backend"]}
    for part, products in PRODUCTS.items():
        seconds = median(m[part] for m in measured)
        found[f"{part}_ms"] = round(1e3 * seconds, 4)
        found[f"{part}_ratio"] = round(median(m[part] / f[part] for m, f in zip(measured, first, strict=True)), 4)
        found[f"{part}_tflops"] = round(products * product(shape) / seconds / 1e12, 2)
        found[f"{part}_gb_per_second"] = round(least_bytes(shape, dtype, part) / seconds / 1e9, 1)
    found |= {"peak_memory_mib": round(max(m["memory"] for m in measured) / 2**20, 1)}
    found |= {"same_bits": all(m["same_bits"] for m in measured), "rounds": given.rounds}
    shapes = " ".join(f'"{s}"' for s in given.shapes)
    command = f"python scripts/bench_attention.py --shapes {shapes} --rounds {given.rounds} {' '.join(options(given))}"
    return found | circumstances(command, ["torch", "triton"])


def sentence(row: dict[str, Any]) -> str:
    """One line for the terminal."""
    parts = ", ".join(f"{part} {row[f'{part}_ms']:.3f} ms ({row[f'{part}_ratio']:.2f})" for part in PRODUCTS)
    return (
        f"{row['shape']:22} {row['form']:10} {parts}, {row['both_tflops']:.1f} TFLOP/s, "
        f"{row['peak_memory_mib']:.0f} MiB, same bits again: {row['same_bits']}, by {row['backend']}"
    )


def check_target(rows: list[dict[str, Any]]) -> None:
    """Say where the kernels are as near to attention without a bias as the project wants."""
    for row in rows:
        if row["form"] == "fused" and (row["tokens"], row["depth"]) == (196, 64):
            met = "met    " if row["both_ratio"] <= TARGET else "NOT MET"
            print(f"{met} {row['shape']}, both over those without a bias: {row['both_ratio']} (<= {TARGET})")


def product(shape: Shape) -> int:
    """Operations of one matrix product of all samples and heads."""
    return 2 * shape.images * shape.windows * shape.heads * shape.tokens**2 * shape.depth


def least_bytes(shape: Shape, dtype: torch.dtype, part: str) -> int:
    """What is read and written if nothing is read twice: q, k, v, O and their gradients, the bias and its own."""
    tokens = shape.images * shape.windows * shape.heads * shape.tokens * shape.depth
    bias = shape.windows * shape.heads * shape.tokens**2
    parts = {"forward": 4 * tokens + bias, "backward": 8 * tokens + 2 * bias}
    return dtype.itemsize * (sum(parts.values()) if part == "both" else parts[part])


def measure(shape: Shape, form: str, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of forward and backward, and of both; the memory that they add; whether two runs give equal bits; and
    what computed them. Those of the backward pass are a difference: two passes in a row do not fit every form."""
    device, dtype = torch.device(given.device), DTYPES[given.dtype]
    torch.manual_seed(0)
    batch = shape.images * shape.windows
    qkv = torch.randn(batch, shape.tokens, 3, shape.heads, shape.depth, device=device, dtype=dtype)
    q, k, v = (x.requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind())
    bias = torch.randn(shape.windows, shape.heads, shape.tokens, shape.tokens, device=device, dtype=dtype)
    d_out = torch.randn(batch, shape.tokens, shape.heads, shape.depth, device=device, dtype=dtype).transpose(1, 2)
    attend = attention(form, shape, given)
    leaves = [q, k, v] if form == FORMS[0] else [q, k, v, bias.requires_grad_()]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(q, k, v, bias), leaves, d_out)

    first, second = both(), both()
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    del first, second
    memory = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        memory = torch.cuda.max_memory_allocated() - before
    forward, whole = seconds(partial(attend, q, k, v, bias), given), seconds(both, given)
    backend = form if form in ("fused", "reference", "flex") else sdpa_backend(form, q, k, v, bias, shape)
    torch.cuda.empty_cache()  # others share the device
    times = {"forward": forward, "backward": whole - forward, "both": whole}
    return {**times, "memory": memory, "same_bits": same, "backend": backend}


def attention(form: str, shape: Shape, given: argparse.Namespace) -> Callable[..., Tensor]:
    """The function that computes attention in this form, of q, k, v and the bias."""
    if form == FORMS[0]:
        return partial(flash, p=given.dropout)
    if form == "flex":
        return flex(shape.windows)
    dropout = AttentionDropout(given.dropout)
    dropout.keys = torch.arange(shape.images * shape.windows, device=given.device)
    return partial(biased_attention, dropout=dropout, backend=form)


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, p: float) -> Tensor:
    """PyTorch's attention without the bias, by its flash kernel where that can."""
    with sdpa_kernel(FLASH_FIRST, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)


def sdpa_backend(form: str, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, shape: Shape) -> str:
    """Which of its kernels PyTorch's attention takes, flash, efficient, cudnn or math."""
    if form == FORMS[0]:
        with sdpa_kernel(FLASH_FIRST, set_priority=True):
            chosen = torch._fused_sdp_choice(q, k, v)
    else:
        chosen = torch._fused_sdp_choice(q, k, v, attn_mask=bias.repeat(len(q) // len(bias), 1, 1, 1))
    return SDPBackend(chosen).name.lower().replace("_attention", "")


@functools.cache
def flex(windows: int) -> Callable[..., Tensor]:
    """FlexAttention, which adds the bias to the scores by a compiled function."""
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = 64  # one for every shape
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        def add(score: Tensor, sample: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return score + bias[sample % windows, head, query, key]

        return compiled(q, k, v, score_mod=add)

    return attend


def seconds(call: Callable[[], Any], given: argparse.Namespace) -> float:
    """Seconds of one call, the device's work included: the median of many."""
    return Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=given.seconds).median


if __name__ == "__main__":
    main()
