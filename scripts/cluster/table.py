"""The findings as plain text below 100 columns, to be pasted into an issue."""

import textwrap
from collections import Counter

from scripts.cluster.findings import Findings, looks_wrong

WIDTH = 98
VITB = 1.4e9  # bytes of a checkpoint of ViT-B


def report(title: str, found: Findings) -> str:
    """All tables, then what looks wrong."""
    sentences = looks_wrong(found)
    parts = [
        _wrapped(title),
        _wrapped("software: " + ", ".join(f"{name} {version}" for name, version in _common(found).items())),
        _nodes(found),
        _bandwidth(found),
        _steps(found),
        _run_dir(found),
        *(_wrapped(f"note: {note}") for note in found.notes),
        "\n".join(["looks wrong:", *(_wrapped(f"{n}. {s}", "   ") for n, s in enumerate(sentences, 1))])
        if sentences
        else "nothing looks wrong",
    ]
    return "\n\n".join(part for part in parts if part)


def _common(found: Findings) -> dict[str, str]:
    """The versions that most processes have."""
    names = list(dict.fromkeys(name for seen in found.seen for name in seen.versions))
    return {
        name: Counter(seen.versions[name] for seen in found.seen if name in seen.versions).most_common(1)[0][0]
        for name in names
    }


def _nodes(found: Findings) -> str:
    rows = [["node", "processes", "cores", "GPUs", "loader, images/s", "staging", "clock ahead"]]
    for host, ranks in found.nodes.items():
        seen = found.on(host)
        gpus = Counter(one.gpu for one in seen if one.gpu)
        rows.append(
            [
                host,
                str(len(ranks)),
                str(found.cores(host)),
                ", ".join(f"{count} x {name.removeprefix('NVIDIA ')}" for name, count in gpus.items()) or "-",
                f"{found.loader(host):,.0f}",
                _rate(found.disks[host].staging),
                f"{found.clocks[ranks[0]] * 1e3:+.0f} ms",
            ]
        )
    return aligned(rows)


def _bandwidth(found: Findings) -> str:
    if not found.bandwidth:
        return ""
    sizes = list(dict.fromkeys(size for row in found.bandwidth.values() for size in row))
    rows = [["processes", *sizes]]
    for k, row in found.bandwidth.items():
        rows.append([str(k), *(f"{row[size] / 1e9:.2f}" if size in row else "-" for size in sizes)])
    backend = "NCCL" if found.device == "cuda" else "gloo"
    return f"all-reduce by {backend}, bus bandwidth in GB/s\n" + aligned(rows)


def _steps(found: Findings) -> str:
    rows = [["processes", "images/s", "efficiency"]]
    rows += [
        [str(k), f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}", f"{found.efficiency(k):.0%}"]
        for k, rate in found.steps.items()
    ]
    return "train step\n" + aligned(rows)


def _run_dir(found: Findings) -> str:
    writing = next(iter(found.disks.values())).writing
    return f"run.dir takes {_rate(writing)}: {VITB / writing:.0f} s for a checkpoint of ViT-B" if writing else ""


def _rate(rate: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate / 1e9:.2f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"


def aligned(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
