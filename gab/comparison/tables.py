"""A comparison as a table: CSV with every number, Markdown and LaTeX with those that a reader wants."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gab.comparison.arms import Arm, Group
from gab.comparison.runs import Endpoint
from gab.comparison.statistics import Estimate
from gab.comparison.verdict import Comparison, scores
from gab.comparison.words import shown_p

SCORES = [
    split + name
    for split in ("", "test_")
    for name in ("top1", "top1_ema", "mean_per_class", "mean_per_class_ema", "loss", "loss_ema")
]


def as_csv(groups: Sequence[Group], comparisons: Sequence[Comparison], endpoint: Endpoint) -> str:
    """A line for each arm, every group's best first: what was studied, its seeds, scores, cost, and what came out."""
    rows = []
    by_arm = {(id(one.group), id(one.arm)): one for one in comparisons}
    for group in groups:
        for arm in best_first(group, endpoint):
            one = by_arm.get((id(group), id(arm)))
            rows.append({"data": group.label, **arm.values, **_seeds(arm), **_scores(arm), **_cost(arm), **_found(one)})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for key in columns if any(row.get(key) not in (None, "") for row in rows)]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def best_first(group: Group, endpoint: Endpoint) -> list[Arm]:
    """The arms by the mean of the endpoint."""
    return sorted(group.arms, key=lambda arm: scores(arm, endpoint).mean(), reverse=not endpoint.is_loss)


def _seeds(arm: Arm) -> dict[str, Any]:
    """Seeds run by run, those of the split where there are several."""
    found: dict[str, Any] = {"runs": len(arm.runs), "seeds": " ".join(str(seed) for seed, _ in arm.seeds)}
    if any(split for _, split in arm.seeds):
        found["split_seeds"] = " ".join(str(split) for _, split in arm.seeds)
    return found


def _scores(arm: Arm) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the last row's scores (percent, losses in nats)."""
    found: dict[str, Any] = {}
    for name in SCORES:
        values = [run.end[name] for run in arm.runs.values() if run.end.get(name) is not None]
        places = 5 if "loss" in name else 3
        found[f"{name}_mean"] = round(float(np.mean(values)), places) if values else None
        found[f"{name}_sd"] = round(float(np.std(values, ddof=1)), places) if len(values) > 1 else None
    return found


def _cost(arm: Arm) -> dict[str, Any]:
    rates = [run.rate for run in arm.runs.values() if run.rate]
    return {
        "parameters": arm.first.start.get("parameters"),
        "macs": arm.first.start.get("macs"),
        "images_per_second": round(float(np.mean(rates)), 1) if rates else None,
    }


def _found(one: Comparison | None) -> dict[str, Any]:
    """Everything that was computed of a comparison, under names of columns."""
    if one is None:
        return {}
    r, low, high = one.correlation
    return {
        "baseline": one.baseline.label,
        "endpoint": one.endpoint.name,
        "difference": f"{one.difference:.5g}",
        **_estimate("welch", one.welch),
        **_estimate("paired", one.paired),
        "pairs": len(one.true_pairs),
        **_numbers(correlation=r, correlation_low=low, correlation_high=high),
        **_estimate("crossed", one.crossed),
        "verdict_by": "paired" if one.rules.paired else "welch",
        "delta": one.rules.delta,
        **_numbers(p_holm=one.p_holm, p_equivalence_holm=one.p_rule_out),
        "verdict": one.word if one.main else "",
        "seeds_needed": one.seeds_needed,
        **({"mcnemar_p": f"{one.checkpoints.p:.4g}"} if one.checkpoints else {}),
    }


def _estimate(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None or not estimate.error:
        return {}
    return _numbers(**{f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_p": estimate.p})


def _numbers(**values: float) -> dict[str, Any]:
    return {name: f"{value:.5g}" for name, value in values.items() if not math.isnan(value)}


def as_markdown(groups: Sequence[Group], comparisons: Sequence[Comparison], endpoint: Endpoint) -> str:
    """Arms, best first, with mean ± sd (n), the difference from the baseline and its interval, cost and verdict."""
    head = [
        *("data", "arm", f"{endpoint.name} ({'nats' if endpoint.is_loss else '%'})", "difference", "95 % interval"),
        *("p (Holm)", "verdict", "parameters", "MACs", "images/s"),
    ]
    lines = [head, ["---"] * len(head)]
    lines += [_cells(group, arm, comparisons, endpoint) for group in groups for arm in best_first(group, endpoint)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(group: Group, arm: Arm, comparisons: Sequence[Comparison], endpoint: Endpoint) -> list[str]:
    one = next((one for one in comparisons if one.group is group and one.arm is arm), None)
    is_baseline = any(one.baseline is arm for one in comparisons)
    places = 4 if endpoint.is_loss else 2
    interval = ["", "", "", "baseline" if is_baseline else ""]
    if one is not None:
        main, known = one.main, one.main is not None and one.main.error
        interval = [f"{one.difference:+.{places}f}", "", "", "no verdict"]
        if main is not None and known:
            interval[1:] = [f"{main.low:+.{places}f} to {main.high:+.{places}f}", shown_p(one.p_holm), one.word]
    cost = _cost(arm)
    return [group.label, arm.label, mean_and_sd(arm, endpoint), *interval, *cost_words(cost)]


def cost_words(cost: dict[str, Any]) -> list[str]:
    """Parameters, multiply-accumulates and images per second as a reader wants them."""
    parameters, macs, rate = cost["parameters"], cost["macs"], cost["images_per_second"]
    return [
        f"{parameters:,}" if parameters else "",
        "" if not macs else f"{macs / 1e9:.2f} G" if macs >= 1e8 else f"{macs / 1e6:.1f} M",
        f"{rate:,.0f}" if rate else "",
    ]


def mean_and_sd(arm: Arm, endpoint: Endpoint) -> str:
    """`81.02 ± 0.11 (5)`; of one seed, no spread."""
    values = scores(arm, endpoint)
    places = 4 if endpoint.is_loss else 2
    spread = f" ± {values.std(ddof=1):.{places}f}" if len(values) > 1 else ""
    return f"{values.mean():.{places}f}{spread} ({len(values)})"


def as_latex(groups: Sequence[Group], comparisons: Sequence[Comparison], endpoint: Endpoint) -> str:
    r"""The same without p and verdict, for `\usepackage{booktabs}`."""
    unit = "nats" if endpoint.is_loss else r"\%"
    lines = [
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        rf"data & arm & {_tex(endpoint.name)} ({unit}), mean $\pm$ sd ($n$) & difference (95\,\% interval) & "
        r"parameters & MACs & images/s \\",
        r"\midrule",
    ]
    for group in groups:
        for arm in best_first(group, endpoint):
            name, label, value, shown, interval, *_, parameters, macs, rate = _cells(group, arm, comparisons, endpoint)
            change = f"${shown}$" + (f" (${interval.replace(' to ', '$ to $')}$)" if interval else "") if shown else ""
            value = value.replace(" ± ", r" $\pm$ ")
            cells = [_tex(name), _tex(label), value, change, parameters.replace(",", r"\,"), macs, rate]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    for sign in "_&%#${}":
        text = text.replace(sign, rf"\{sign}")
    return text
