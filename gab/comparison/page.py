"""A comparison as one HTML file that opens offline: verdict first, then every number and picture behind it."""

import base64
import math
import struct
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gab.comparison import arms, charts, tables
from gab.comparison.arms import Group
from gab.comparison.runs import Endpoint, Run
from gab.comparison.statistics import DRAWS, Estimate
from gab.comparison.verdict import Comparison, Rules
from gab.comparison.words import digits, proof, sentence, shown_p

MIME = {"png": "png", "svg": "svg+xml"}
FIGURES = 8  # of a run that are shown; more would make the file large
FIRST = ("erf", "bias_maps", "position_similarity", "attention_distance", "rollout")  # of these, if there are more
OWN = ("top1", "bias_over_time")  # figures of runs that are drawn anew here, for all runs together

STYLE = """
:root { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 68rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { max-width: 48rem; } .small { color: #555; font-size: .875rem; }
.verdict { border-left: .4rem solid #777; background: #f4f4f4; padding: .6rem 1rem; margin: .8rem 0; }
.verdict b { font-size: 1.1rem; } .verdict p { margin: .2rem 0; }
.better { border-color: #0072B2; } .worse { border-color: #D55E00; } .equivalent { border-color: #009E73; }
.notes { border-left: .4rem solid #E69F00; background: #fff8e6; padding: .6rem 1rem .6rem 2rem; margin: .8rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; } th { border-bottom: 2px solid #888; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; }
.side figure img { max-width: 34rem; } figcaption { font-size: .875rem; }
"""


def render(groups: Sequence[Group], comparisons: Sequence[Comparison], endpoint: Endpoint, notes: Sequence[str]) -> str:
    """The page: nothing in it is fetched, and it needs no scripts."""
    title = _title(comparisons)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(_verdict(one) for one in comparisons),
        _list("notes", notes),
        "<h2>Arms</h2>",
        _table(*_arms(groups, comparisons, endpoint)),
        '<p class="small">Mean ± standard deviation over seeds (number of seeds); images/s as they were in training, '
        "with whatever else the machine did.</p>",
        *(_tests(one) for one in comparisons),
        *(_group(group, comparisons, endpoint) for group in groups),
        "<h2>What it does not show</h2>",
        _list("", _limits(groups, comparisons, endpoint)),
        "<h2>Runs</h2>",
        _table(["run", "seed", "commit", "top-1"], _runs(groups)),
    ]
    body = "\n".join(filter(None, parts)).replace(" %", "&nbsp;%")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _title(comparisons: Sequence[Comparison]) -> str:
    """Which arms are compared with which baselines."""
    compared: dict[str, list[str]] = {}
    for one in comparisons:
        compared.setdefault(one.baseline.label, []).append(one.arm.label)
    return "; ".join(f"{', '.join(dict.fromkeys(others))} against {baseline}" for baseline, others in compared.items())


def _verdict(one: Comparison) -> str:
    word = one.word if one.main is not None and one.main.error else "no verdict"
    said = "".join(f"<p>{escape(text)}</p>" for text in (sentence(one), proof(one)) if text)
    return f'<div class="verdict {word}"><b>{word.capitalize()}</b>{said}</div>'


def _list(kind: str, texts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if texts else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f'<div class="wide"><table>{line("th", head)}{"".join(line("td", row) for row in rows)}</table></div>'


def _arms(
    groups: Sequence[Group], comparisons: Sequence[Comparison], endpoint: Endpoint
) -> tuple[list[str], list[list[str]]]:
    """The table of tables.as_markdown."""
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in tables.as_markdown(groups, comparisons, endpoint).splitlines()
    )
    return head, rows


def _tests(one: Comparison) -> str:
    """Every test of a comparison, with what it takes for another try of the same."""
    images = one.baseline.first.start.get("eval_images")
    same = f"the same {images:,} images" if images and not one.endpoint.field.startswith("test_") else "the same images"
    main = "paired" if one.rules.paired else "welch"
    rows = []
    for kind, name, again in (
        ("welch", "Welch's t", f"other seeds, {same}"),
        (
            "paired",
            f"paired t, {len(one.true_pairs)} pair{'s' * (len(one.true_pairs) != 1)}",
            f"other seeds, the same in both arms, {same}",
        ),
        ("crossed", f"crossed bootstrap, {DRAWS:,} draws", "other seeds and other images of the same kind"),
    ):
        name += " (verdict)" if kind == main else ""
        rows.append([name, *_estimate(getattr(one, kind), digits(one)), again])
    found = _table(["test", "difference", "95 % interval", "p, not corrected", "what “again” means"], rows)
    heading = f"<h2>{escape(f'{one.arm.label} against {one.baseline.label}, {one.group.label}')}</h2>"
    return heading + found + "".join(f'<p class="small">{escape(text)}</p>' for text in _remarks(one) if text)


def _estimate(estimate: Estimate | None, places: int) -> list[str]:
    if estimate is None or not estimate.error:
        return ["–", "–", "–"]
    interval = f"{estimate.low:+.{places}f} to {estimate.high:+.{places}f}"
    return [f"{estimate.difference:+.{places}f}", interval, shown_p(estimate.p)]


def _remarks(one: Comparison) -> list[str]:
    """What belongs to the tests: correction, equivalence, correlation, checkpoints, other endpoints."""
    r, low, high = one.correlation
    found = []
    if one.main is not None:
        found.append(
            f"Corrected for all comparisons of this page (Holm): p = {shown_p(one.p_holm)} for a difference, p = "
            f"{shown_p(one.p_rule_out)} for equivalence within ±{one.rules.delta:g} {one.endpoint.unit} (two one-sided "
            "tests)."
        )
    if not math.isnan(r):
        interval = f", 95 % interval {low:.2f} to {high:.2f}" if low > -1 else ""
        found.append(
            f"Correlation of the {len(one.true_pairs)} pairs of equal seed: {r:.2f}{interval}. Near zero, pairing "
            "gains nothing; the paired t then only has fewer degrees of freedom."
        )
    if test := one.checkpoints:
        found.append(
            f"About these two checkpoints alone, not about their arms: {test.first_only:,} validation images are right "
            f"with {one.baseline.label} only, {test.second_only:,} with {one.arm.label} only (McNemar, exact: p = "
            f"{shown_p(test.p)})."
        )
    return [*found, _other_endpoints(one)]


def _other_endpoints(one: Comparison) -> str:
    """The other scores of the last row, without a verdict."""
    words = []
    for field in ("top1", "loss", "top1_ema", "test_top1"):
        runs = [*one.baseline.runs.values(), *one.arm.runs.values()]
        if field == one.endpoint.field or not all(run.end.get(field) is not None for run in runs):
            continue
        other = Comparison(one.group, one.baseline, one.arm, Endpoint(field), Rules(one.rules.delta, one.rules.paired))
        if other.main is not None and other.main.error:
            difference, interval, p = _estimate(other.main, digits(other))
            words.append(f"{field} {difference} {other.endpoint.unit} ({interval}, p = {p})")
    return f"Also looked at, but not used for the verdict and not corrected: {'; '.join(words)}." if words else ""


def _group(group: Group, comparisons: Sequence[Comparison], endpoint: Endpoint) -> str:
    """Pictures and settings of a group."""
    here = [one for one in comparisons if one.group is group]
    drawn = {
        "Every seed: a point is a run, grey lines join runs of one seed, bars are mean and standard deviation.": (
            charts.every_seed(group, here, endpoint)
        ),
        "Differences from the baseline with their 95 % intervals, by what is taken for another try.": (
            charts.intervals(here)
        ),
        "Top-1 after every epoch: mean over seeds, and the range of the runs.": charts.curve(group, "top1"),
        "Log-loss after every epoch: mean over seeds, and the range of the runs.": charts.curve(group, "loss"),
        "The Gaussian's σ and amplitude in every layer, mean over seeds and heads.": charts.gaussians(group),
    }
    shown = "".join(
        _picture(f"data:image/svg+xml;base64,{_text64(charts.svg(figure).encode())}", caption)
        for caption, figure in drawn.items()
        if figure is not None
    )
    found = f'<h2>Pictures, {escape(group.label)}</h2><div class="side">{shown}</div>{_figures(group)}'
    keys = arms.different(arm.settings for arm in group.arms)
    if keys:
        rows = [[key, *(_shown(arm.settings.get(key)) for arm in group.arms)] for key in keys]
        found += f"<h2>Settings that differ, {escape(group.label)}</h2>"
        found += _table(["setting", *(arm.label for arm in group.arms)], rows)
        found += '<p class="small">All other settings that may change results are equal.</p>'
    return found


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _picture(source: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _text64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _figures(group: Group) -> str:
    """What the runs of one seed drew themselves, such as receptive fields and bias maps, side by side."""
    common = set.intersection(*(set(arm.runs) for arm in group.arms))
    runs = [arm.runs[min(common or arm.runs)] for arm in group.arms]
    found = [_drawn(run) for run in runs]
    names = sorted({name for each in found for name in each}, key=lambda name: (name not in FIRST, name))
    rows = ""
    for name in names[:FIGURES]:
        files = [each.get(name) for each in found]
        cells = "".join(
            _picture(_data(file), f"{arm.label}, seed {run.seed[0]}")
            for arm, run, file in zip(group.arms, runs, files, strict=True)
            if file is not None
        )
        kind = "below" if any(file is not None and _is_wide(file) for file in files) else "side"
        rows += f'<h2>Drawn by the runs: {escape(name)}</h2><div class="{kind}">{cells}</div>'
    if len(names) > FIGURES:
        rows += f'<p class="small">Not shown: {escape(", ".join(names[FIGURES:]))}.</p>'
    return rows


def _drawn(run: Run) -> dict[str, Path]:
    """The figures of a run that can be read, by name; of one that was drawn at several epochs, the last."""
    folders = [run.folder / folder for folder in ("figures", "eval")]
    files = sorted(file for folder in folders for ending in MIME for file in folder.rglob(f"*.{ending}"))
    return {file.stem: file for file in files if file.stem not in OWN and _is_readable(file)}


def _data(file: Path) -> str:
    return f"data:image/{MIME[file.suffix[1:]]};base64,{_text64(file.read_bytes())}"


def _is_readable(file: Path) -> bool:
    """Whether a figure is whole as far as its size: a copy may have been cut."""
    head = file.read_bytes()[:24] if file.is_file() else b""
    return len(head) == 24 and (file.suffix == ".svg" or head.startswith(b"\x89PNG\r\n\x1a\n"))


def _is_wide(file: Path) -> bool:
    """Whether a figure is too wide to stand beside another: a PNG file of twice its height; an SVG file may be."""
    width, height = struct.unpack(">II", file.read_bytes()[16:24]) if file.suffix == ".png" else (2, 1)
    return width >= 2 * height


def _limits(groups: Sequence[Group], comparisons: Sequence[Comparison], endpoint: Endpoint) -> list[str]:
    """What a reader might take from the page though it is not in it."""
    seeds = [len(arm.runs) for group in groups for arm in group.arms]
    fewest = min(seeds)
    unsure = (
        f" A standard deviation of {fewest} seeds is itself uncertain by {_uncertain(fewest)}." if fewest > 1 else ""
    )
    epochs = sorted({group.arms[0].first.end["epoch"] for group in groups})
    found = [
        f"Seeds in an arm: {fewest}" + (f" to {max(seeds)}" if max(seeds) > fewest else "") + f".{unsure}",
        f"It is about these networks, this recipe and {', '.join(f'{each:g}' for each in epochs)} epochs: longer "
        "training, other sizes and other data may order the arms differently.",
        "No setting was tuned for either arm here; whether the recipe suits one better than the other is not known.",
    ]
    if not endpoint.field.startswith("test_"):
        found.append("The images are the validation images: whatever was chosen on them looks better than it is.")
    if any(one.main is not None and one.crossed is None for one in comparisons):
        found.append(
            "Where no crossed bootstrap is given, nothing says what other images would do: predictions were not kept."
        )
    return found


def _uncertain(seeds: int) -> str:
    """The relative standard error of a standard deviation, for normal values."""
    return f"about {100 / math.sqrt(2 * (seeds - 1)):.0f} %"


def _runs(groups: Sequence[Group]) -> Iterable[list[str]]:
    for group in groups:
        for arm in group.arms:
            for seed in arm.seeds:
                run = arm.runs[seed]
                top1 = run.end.get("top1")
                commit = str(run.start.get("commit") or "–")[:10]
                yield [run.folder.name, str(seed[0]), commit, "–" if top1 is None else f"{top1:.2f}"]
