"""scripts/compare.py: verdicts of runs whose truth is known, its files, and what it refuses in a sentence."""

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gab.comparison import charts, plan
from scripts import compare
from tests.gab.comparison.made import made_arms, made_run

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes([0, 0, 0, 9, 0, 0, 0, 3]) + b"..."  # 9 x 3 pixels, as far as it goes
SIX = {False: [60.0, 60.4, 59.6, 60.2, 59.8, 60.0]}


DRAW = charts.svg


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests want none, and they take time."""
    monkeypatch.setattr(charts, "svg", lambda figure: "")


def run(*words: object) -> None:
    compare.main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The sentence that a command line ends with."""
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def table(out: Path) -> list[dict[str, str]]:
    with (out / "comparison.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_large_difference_is_found_and_a_small_one_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sizes in one call: each has a verdict, and p values are corrected for both."""
    good = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 62.4, 61.6, 62.0, 61.8, 62.2]}, "s", base="small")
    same = made_arms(tmp_path / "runs", {**SIX, True: [60.2, 60.2, 59.8, 60.0, 59.6, 60.4]}, "t", base="tiny")
    run("--out", tmp_path / "out", *good, *same, "--by", "model.gab")
    said = capsys.readouterr().out
    assert "model.gab=true is better than model.gab=false on made, small, by validation top-1: +2.00 points" in said
    assert "Inconclusive: model.gab=true against model.gab=false on made, tiny" in said
    assert "in 4 of 5 such studies, corrected for the 2 comparisons." in said
    assert "6 of 6 pairs saw the same images" in said
    rows = {(row["data"], row["model.gab"]): row for row in table(tmp_path / "out")}
    found = rows["made, small", "True"]
    assert found["verdict"] == "better"
    assert float(found["p_holm"]) == pytest.approx(2 * float(found["welch_p"]), rel=1e-3)
    assert (found["top1_mean"], found["parameters"], found["pairs"]) == ("62.0", "1002", "6")
    assert rows["made, tiny", "True"]["verdict"] == "inconclusive"
    assert int(rows["made, tiny", "True"]["seeds_needed"]) > 50


@pytest.mark.parametrize("words", [(), ("--baseline", "tiny"), ("--baseline", "none, false"), ("--baseline", "small")])
def test_each_size_has_a_verdict_by_several_settings_too(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their arms have names of their own then: those of the networks."""
    runs = [
        made_run(tmp_path / f"{base}{gab}{seed}", base=base, gab=gab, seed=seed, score=score + seed, settings=position)
        for base in ("small", "tiny")
        for gab, score, position in (
            (False, 60.0, {"model.rel_pos": "none"}),
            (True, 65.0 - 10 * (base == "tiny"), {"model.rel_pos": "mlp"}),
        )
        for seed in range(3)
    ]
    run("--out", tmp_path / "out", *runs, "--by", "model.rel_pos,model.gab", *words)
    said = capsys.readouterr().out
    assert "small_gab is better than small on made, small, by" in said
    assert "tiny_gab is worse than tiny on made, tiny, by" in said
    assert "Nothing is compared" not in said
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<title>small_gab against small; tiny_gab against tiny</title>" in page


@pytest.mark.parametrize(("scores", "verdict"), [([58.0, 58.4, 57.8], "worse"), ([60.0, 60.2, 59.8], "equivalent")])
def test_verdicts(tmp_path: Path, scores: list[float], verdict: str) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: scores})
    run("--out", tmp_path / "out", *runs, "--by", "variant", "--delta", 1)
    assert [row["verdict"] for row in table(tmp_path / "out") if row["verdict"]] == [verdict]


def test_pairs_find_what_seeds_hide_where_they_correlate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The seeds differ much, and each gains half a point."""
    runs = made_arms(tmp_path / "runs", {False: [55.0, 60.0, 65.0, 58.0], True: [55.6, 60.4, 65.4, 58.6]})
    run("--out", tmp_path / "out", *runs, "--by", "variant")
    assert "Inconclusive" in capsys.readouterr().out
    run("--out", tmp_path / "out", *runs, "--by", "variant", "--paired")
    assert "by validation top-1: +0.50 points (95 % interval +0.32 to +0.68; 4 pairs)" in capsys.readouterr().out
    (row,) = (row for row in table(tmp_path / "out") if row["verdict"])
    assert (row["verdict"], row["verdict_by"]) == ("better", "paired")
    assert float(row["correlation"]) > 0.99


def test_of_losses_less_is_better(tmp_path: Path) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [58.0, 58.4, 57.8]})
    run("--out", tmp_path / "out", *runs, "--endpoint", "loss", "--baseline", "tiny_gab", "--by", "variant")
    (row,) = (row for row in table(tmp_path / "out") if row["verdict"])
    assert (row["variant"], row["verdict"], row["baseline"]) == ("tiny", "better", "tiny_gab")
    assert float(row["difference"]) < 0


def test_one_seed_has_no_verdict_but_its_checkpoints_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {False: [60.0], True: [62.0]})
    run("--out", tmp_path / "out", *runs)
    assert "No verdict: model.gab=true is +2.00 points" in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "About these two checkpoints alone" in page
    assert "0 validation images are right with model.gab=false only, 10 with model.gab=true only" in page
    (row,) = (row for row in table(tmp_path / "out") if row["difference"])
    assert float(row["mcnemar_p"]) == pytest.approx(2 * 0.5**10, rel=1e-3)
    assert not row.get("verdict")


@pytest.mark.parametrize("words", [(), ("--endpoint", "loss"), ("--endpoint", "top1_ema"), ("--last", 2)])
def test_checkpoints_are_compared_by_what_their_predictions_are_of(words: tuple[object, ...], tmp_path: Path) -> None:
    """Not by test images, log-loss, averaged weights or several epochs: the images are those of validation top-1."""
    scores = {"test_top1": 50.0} if not words else {}
    runs = [made_run(tmp_path / f"{gab}", gab=gab, score=60 + 5 * gab, top1_ema=50.0, **scores) for gab in (0, 1)]
    run("--out", tmp_path / "out", *runs, *words)
    assert "checkpoints alone" not in (tmp_path / "out" / "comparison.html").read_text()
    assert "mcnemar_p" not in (tmp_path / "out" / "comparison.csv").read_text()


def test_equal_runs_have_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {False: [60.0, 60.0], True: [62.0, 62.0]})
    run("--out", tmp_path / "out", *runs)
    assert "do not differ among themselves" in capsys.readouterr().out
    assert "better" not in (tmp_path / "out" / "comparison.csv").read_text()


def test_the_page_is_whole_and_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "svg", DRAW)
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 62.4, 61.6]})
    for folder in runs:
        (folder / "figures" / "epoch_0003").mkdir(parents=True)
        (folder / "figures" / "epoch_0003" / "erf.png").write_bytes(PNG)
    run("--out", tmp_path / "out", *runs, "--by", "variant")
    page = (tmp_path / "out" / "comparison.html").read_text()

    class Links(HTMLParser):
        found: ClassVar[list[str | None]] = []

        def handle_starttag(self, tag: str, attributes: list[Any]) -> None:
            assert tag not in ("script", "link", "iframe")
            self.found += [value for name, value in attributes if name in ("src", "href")]

    links = Links()
    links.feed(page)
    assert all(link and link.startswith("data:image/") for link in links.found)
    assert sum(str(link).startswith("data:image/png") for link in links.found) == 2  # receptive fields, side by side
    assert page.count('<div class="below">') == 1  # too wide for side by side
    assert page.index("Better") < page.index("Arms") < page.index("What it does not show")
    assert "<td>model.gab</td><td>false</td><td>true</td>" in page
    again = (tmp_path / "out" / "comparison.html").read_text()
    run("--out", tmp_path / "out", *runs, "--by", "variant")
    assert (tmp_path / "out" / "comparison.html").read_text() == again


def test_receptive_fields_and_bias_maps_come_before_other_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "svg", DRAW)
    runs = made_arms(tmp_path / "runs", {False: [60.0], True: [62.0]})
    for folder in runs:
        (folder / "figures").mkdir()
        for name in (*(f"a{number}" for number in range(8)), "bias_maps", "erf"):
            (folder / "figures" / f"{name}.png").write_bytes(PNG)
    run("--out", tmp_path / "out", *runs)
    page = (tmp_path / "out" / "comparison.html").read_text()
    shown = re.findall("Drawn by the runs: ([a-z0-9_]+)", page)
    assert shown == ["bias_maps", "erf", *(f"a{number}" for number in range(6))]
    assert "Not shown: a6, a7." in page


def test_latex_and_markdown(tmp_path: Path) -> None:
    run("--out", tmp_path / "out", *made_arms(tmp_path / "runs", {**SIX, True: [62.0, 62.4, 61.6]}), "--by", "variant")
    tex = (tmp_path / "out" / "comparison.tex").read_text()
    assert r"made & tiny\_gab & 62.00 $\pm$ 0.40 (3) & $+2.00$ ($+1.19$ to $+2.81$) & 1\,002 & 5.0 M & 100 \\" in tex
    assert all(line in tex for line in (r"\toprule", r"\midrule", r"\bottomrule"))
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert "| made | tiny | 60.00 ± 0.28 (6) |" in markdown


def test_seeds_that_are_added_after_a_look_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [60.4, 60.8, 60.0, 60.2, 60.6, 60.4]})
    few = [each for each in runs if each.name[-1] in "012"]
    run("--out", tmp_path / "out", *few)
    run("--out", tmp_path / "out", *few)
    assert "added after looking" not in capsys.readouterr().out
    run("--out", tmp_path / "out", *runs)
    said = capsys.readouterr().out
    assert "Seeds were added after looking" in said
    assert "with 3 and 3 seeds before" in said
    assert "Seeds were added after looking" in (tmp_path / "out" / "comparison.html").read_text()
    assert len(json.loads((tmp_path / "out" / "comparison.json").read_text())) == 2
    run("--out", tmp_path / "out", *(each for each in runs if each.name[-1] in "1234"))
    assert "Seeds were added after looking" in capsys.readouterr().out  # though one of the first was left out
    run("--out", tmp_path / "out", *few)
    assert "Seeds were left out after looking" in capsys.readouterr().out


def test_a_look_at_another_study_is_none_at_this(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though both have the same label: another learning rate, alone in each call."""
    few = made_arms(tmp_path / "few", {False: [60.0, 60.4, 59.6], True: [60.2, 60.0, 59.4]})
    many = made_arms(
        tmp_path / "many", {**SIX, True: [60.4, 60.8, 60.0, 60.2, 60.6, 60.4]}, settings={"optim.lr": 1e-3}
    )
    for runs in (few, many):
        run("--out", tmp_path / "out", *runs, "--by", "model.gab")
    assert "after looking" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("--by", "model.gab"), ("--baseline", "false, 0.001"), ("--baseline", "true, 0.001")]
)
def test_seeds_are_told_of_under_another_label_too(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What else is in the call gives groups and arms other names; so does another baseline."""
    scores = {**SIX, True: [60.4, 60.8, 60.0, 60.2, 60.6, 60.4]}
    runs = made_arms(tmp_path / "one", scores, settings={"optim.lr": 1e-3})
    other = made_arms(tmp_path / "other", scores, settings={"optim.lr": 2e-3})
    run("--out", tmp_path / "out", *(each for each in runs if each.name[-1] in "012"))
    capsys.readouterr()
    run("--out", tmp_path / "out", *runs, *other, *words)
    notes = [line for line in capsys.readouterr().out.splitlines() if "after looking" in line]
    assert len(notes) == 1
    assert notes[0].startswith("Seeds were added after looking: ")
    assert "0.002" not in notes[0]
    assert "with 3 and 3 seeds before" in notes[0]


def test_added_and_left_out_are_told_by_the_study_that_shares_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [60.4, 60.8, 60.0, 60.2, 60.6, 60.4]})
    for seeds in ("01", "2345", "23"):
        run("--out", tmp_path / "out", *(each for each in runs if each.name[-1] in seeds))
    assert "Seeds were left out after looking" in capsys.readouterr().out


def test_an_endpoint_delta_or_test_that_is_changed_after_a_look_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [60.4, 60.8, 60.0, 60.2, 60.6, 60.4]})

    def notes(*words: object) -> list[str]:
        run("--out", tmp_path / "out", *runs, *words)
        return [line for line in capsys.readouterr().out.splitlines() if "after looking" in line]

    assert notes("--endpoint", "loss") == []
    assert notes("--endpoint", "loss") == []
    (by_top1,) = notes()
    assert by_top1.startswith("The endpoint was changed after looking: model.gab=true and model.gab=false on made were")
    assert "were compared by loss before (first on " in by_top1
    _, delta = notes("--delta", 1)
    assert delta.startswith("The delta was changed after looking: ")
    assert "were compared with ±0.1 before" in delta
    _, test = notes("--delta", 1, "--paired")[-2:]
    assert test.startswith("The test was changed after looking: ")
    assert "were compared by Welch's t before" in test
    assert "The test was changed" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_memory_that_cannot_be_read_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, memory = made_arms(tmp_path / "runs", {**SIX, True: [60.4, 60.8]}), tmp_path / "out" / "comparison.json"
    memory.parent.mkdir()
    for content in ("[", "3", "[3]", '[{"arms": []}]'):
        memory.write_text(content)
        assert f"{memory} cannot be read (" in refused(capsys, "--out", tmp_path / "out", *runs)


def test_a_study_of_new_seeds_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [60.4, 60.8, 60.0, 60.2, 60.6, 60.4]})
    for seeds in ("012", "345"):
        run("--out", tmp_path / "out", *(each for each in runs if each.name[-1] in seeds))
    assert "after looking" not in capsys.readouterr().out


def test_runs_that_saw_other_images_are_no_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {False: [60.0, 60.4, 59.6], True: [60.2, 60.0, 59.4]})
    record = runs[-1] / "record.jsonl"
    record.write_text(record.read_text().replace('"images_digest": "0015"', '"images_digest": "ffff"'))
    run("--out", tmp_path / "out", *runs)
    assert "did not see the same images and crops with seed 2" in capsys.readouterr().out
    assert {row["pairs"] for row in table(tmp_path / "out")} == {"", "2"}


def test_other_weights_at_the_start_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {False: [60.0, 60.4]})
    runs += made_arms(tmp_path / "runs", {True: [61.0, 61.2]}, start={"weights": {"head": "x", "new": "y"}})
    run("--out", tmp_path / "out", *runs)
    assert "did not begin with the same weights: 1 of those shared differ (head)" in capsys.readouterr().out


def test_runs_that_differ_in_the_micro_batch_are_arms_by_its_name(tmp_path: Path) -> None:
    for name, half in (("a", None), ("aa", 64)):
        for seed, score in enumerate(SIX[False]):
            made_run(tmp_path / f"{name}{seed}", seed=seed, score=score, settings={"run.micro_batch": half})
    run("--out", tmp_path / "out", *sorted(tmp_path.glob("a*")), "--by", "run.micro_batch")
    assert [row["run.micro_batch"] for row in table(tmp_path / "out")] == ["", "64"]


def test_without_by_all_that_differs_is_compared_and_data_sets_are_apart(tmp_path: Path) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]}, "m")
    runs += [made_run(tmp_path / "o", data="other", score=50.0), made_run(tmp_path / "f", data="other", gab=True)]
    run("--out", tmp_path / "out", *runs)
    rows = [(row["data"], row["model.gab"], row["seeds"]) for row in table(tmp_path / "out")]
    assert rows == [
        *(("made", "True", "0 1"), ("made", "False", "0 1 2 3 4 5")),  # the best first
        *(("other", "True", "0"), ("other", "False", "0")),
    ]


def test_test_scores_are_taken_where_all_have_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        made_run(tmp_path / f"{gab}{seed}", gab=gab, seed=seed, test_top1=50.0 + seed + gab)
        for gab in (False, True)
        for seed in range(3)
    ]
    run("--out", tmp_path / "out", *runs)
    assert "by test top-1: +1.00 points" in capsys.readouterr().out
    run("--out", tmp_path / "out", *runs, "--endpoint", "top1", "--last", 2)
    assert "by validation top-1, mean of the last 2 evaluations" in capsys.readouterr().out
    assert "has 3 evaluations: lower --last" in refused(capsys, "--out", tmp_path / "out", *runs, "--last", 4)
    assert "take --endpoint of loss, test_top1, top1" in refused(
        capsys, "--out", tmp_path / "out", *runs, "--endpoint", "mAP"
    )


def test_a_data_set_may_be_judged_by_another_score(tmp_path: Path) -> None:
    runs = [
        made_run(tmp_path / f"{gab}{seed}", gab=gab, seed=seed, mean_per_class=70.0 + seed - 5 * gab, settings=judged)
        for gab in (False, True)
        for seed in range(3)
        for judged in [{"data.metric": "mean_per_class"}]
    ]
    run("--out", tmp_path / "out", *runs)
    rows = table(tmp_path / "out")
    assert [(row["model.gab"], row["endpoint"]) for row in rows] == [("False", ""), ("True", "mean_per_class")]


def test_what_has_not_ended_is_left_out_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    runs.append(made_run(tmp_path / "stopped", gab=True, seed=7, unfinished=True))
    (tmp_path / "empty").mkdir()
    runs.append(made_run(tmp_path / "half", gab=True, seed=8))
    (tmp_path / "half" / "record.jsonl").unlink()
    run("--out", tmp_path / "out", *runs)
    said = capsys.readouterr().out
    assert f"Left out: {tmp_path}/stopped has not come to its end (its record stops at epoch 3)." in said
    assert f"Left out: {tmp_path}/half has no record.jsonl, so it has not begun or was not copied whole." in said
    assert "so there is nothing to compare" in refused(capsys, "--out", tmp_path / "out", tmp_path / "stopped")


def test_what_is_no_run_is_left_out_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As runs/* brings it."""
    made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    (tmp_path / "runs" / "multirun.yaml").touch()
    for name in ("erf", "sweeps", "zoo"):
        (tmp_path / "runs" / name).mkdir()
    run("--out", tmp_path / "out", *sorted((tmp_path / "runs").iterdir()))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out"))
    erf, multirun, sweeps = (tmp_path / "runs" / name for name in ("erf", "multirun.yaml", "sweeps"))
    assert line == f"Left out as no runs, or not begun: {erf}, {multirun}, {sweeps} and 1 more."


def test_where_nothing_is_compared_an_earlier_page_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, runs = tmp_path / "out", made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    run("--out", out, *runs)
    before = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "erf").mkdir()
    other = made_run(tmp_path / "other", data="other")
    said = refused(capsys, "--out", out, *runs, tmp_path / "nowhere")
    assert said == f"error: {tmp_path}/nowhere does not exist: correct its name, or train it first\n"
    said = refused(capsys, "--out", out, runs[0], tmp_path / "erf")
    assert said.startswith(
        "error: there is nothing to compare: give runs of another arm too. Nothing is compared on made"
    )
    assert f"Left out as no runs, or not begun: {tmp_path}/erf." in said
    assert "there is nothing to compare" in refused(capsys, "--out", out, runs[0], other, "--by", "variant")
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_groups_are_called_by_what_differs_within_their_data_set(tmp_path: Path) -> None:
    """Each data set has a network and a recipe of its own, and one of them two learning rates."""
    runs = [
        made_run(tmp_path / f"{data}{gab}{lr}", data=data, base=base, gab=gab, settings=recipe | {"optim.lr": lr})
        for data, base, recipe, rates in (
            ("made", "tiny", {"augment.cutmix": 0.0}, (1e-3, 2e-3)),
            ("other", "small", {"augment.cutmix": 1.0}, (5e-4,)),
        )
        for lr in rates
        for gab in (False, True)
    ]
    run("--out", tmp_path / "out", *runs, "--by", "model.gab")
    names = dict.fromkeys(row["data"] for row in table(tmp_path / "out"))
    assert list(names) == ["made, optim.lr=0.001", "made, optim.lr=0.002", "other"]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, runs = tmp_path / "out", made_arms(tmp_path / "runs", SIX)
    assert "is the folder of a run: give the comparison a folder of its own" in refused(capsys, *runs, "--out", runs[0])
    assert "are the same run twice (seed 0)" in refused(capsys, "--out", out, runs[0], runs[0])
    assert "no run has a setting model.gap" in refused(capsys, "--out", out, *runs, "--by", "model.gap")
    other = made_arms(tmp_path / "lr", {True: [60.0, 61.0]}, settings={"optim.lr": 1e-3})
    alone = refused(capsys, "--out", out, *runs, *other, "--by", "model.gab")
    assert "no two runs differ in model.gab alone: the most similar also differ in optim.lr" in alone
    assert "there is no arm x: --baseline takes one of" in refused(
        capsys, "--out", out, *runs, *other, "--baseline", "x"
    )
    mixed = made_run(tmp_path / "mixed", seed=9, settings={"model.depth": 3})
    assert "are both tiny but differ in model.depth" in refused(capsys, "--out", out, *runs, mixed, "--by", "variant")
    assert not out.exists()


def test_other_images_and_broken_records_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, runs = tmp_path / "out", made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    fewer = made_run(tmp_path / "fewer", seed=9, start={"eval_images": 100})
    assert "have different data (eval_images 500 and 100)" in refused(capsys, "--out", out, *runs, fewer)
    with np.load(runs[-1] / "predictions.npz") as file:
        arrays = dict(file)
    np.savez(runs[-1] / "predictions.npz", **(arrays | {"image": arrays["image"][::-1]}))
    assert "were evaluated on different images" in refused(capsys, "--out", out, *runs)
    np.savez(runs[-1] / "predictions.npz", **(arrays | {"label": arrays["label"] + 1}))
    assert "does not have the top-1 of the run's last row" in refused(capsys, "--out", out, *runs)
    record = runs[0] / "record.jsonl"
    record.write_text(record.read_text().replace('{"kind": "eval"', '{"kind" "eval"', 1))
    assert f"{record}, line 3, is not a row of a record" in refused(capsys, "--out", out, *runs)


@pytest.mark.parametrize("left", [0, 10, 300, -300, -40])
def test_half_copied_predictions_are_refused(left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    path = runs[0] / "predictions.npz"
    path.write_bytes(path.read_bytes()[:left])
    assert f"{path} cannot be read" in refused(capsys, "--out", tmp_path / "out", *runs)


def test_flipped_predictions_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    path = runs[0] / "predictions.npz"
    with np.load(path) as file:
        np.savez_compressed(path, **dict(file))
    content = bytearray(path.read_bytes())
    content[100:200] = bytes(100)
    path.write_bytes(content)
    assert f"{path} cannot be read" in refused(capsys, "--out", tmp_path / "out", *runs)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [b", "cannot be read (while parsing"), ("model: {gab: true}", "has no seed, so it is not")]
)
def test_a_damaged_config_is_refused(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    (runs[0] / "config.yaml").write_text(text)
    assert f"{runs[0] / 'config.yaml'} {said}" in refused(capsys, "--out", tmp_path / "out", *runs)


def test_figures_that_were_cut_are_left_out(tmp_path: Path) -> None:
    runs = made_arms(tmp_path / "runs", {**SIX, True: [62.0, 61.8]})
    (runs[0] / "figures").mkdir()
    for name, content in (("cut.png", PNG[:20]), ("empty.svg", b""), ("other.png", b"x" * 100), ("whole.png", PNG)):
        (runs[0] / "figures" / name).write_bytes(content)
    (runs[0] / "figures" / "gone.png").symlink_to(tmp_path / "gone")
    run("--out", tmp_path / "out", *runs)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert re.findall("Drawn by the runs: ([a-z0-9_]+)", page) == ["whole"]


def test_an_endpoint_that_is_not_finite_is_not_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made_run(tmp_path / f"{gab}", gab=gab, loss=math.nan) for gab in (False, True)]
    for folder in runs:
        record = folder / "record.jsonl"
        record.write_text(record.read_text().replace("NaN", '"NaN"'))
    said = refused(capsys, "--out", tmp_path / "out", *runs, "--endpoint", "loss")
    assert said.endswith("has no finite loss there: take --endpoint of top1\n")


def test_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--plan", "--effect", 1.0, "--sd", 1.0)
    assert "| sd 1 | 17 |" in capsys.readouterr().out
    spread = plan.Spread("top1", 8, 45.0, 0.5, 0.1, 0.9, 0.5, 0.99)
    plan.write(tmp_path / "study.csv", [spread])
    run("--plan", "--effect", 0.5, "--aa", tmp_path / "study.csv")
    said = capsys.readouterr().out
    assert "| sd 0.5, as measured on 8 seeds | 17 |" in said
    assert "| sd 0.677, which the true one exceeds in 1 of 5 such studies |" in said
    run("--plan", "--effect", 1.0, "--sd", 1.0, "--comparisons", 3)
    said = capsys.readouterr().out
    assert "| sd 1 | 23 | 25 | 25 |" in said
    assert "corrected for 3 comparisons" in said
    assert "--comparisons is the number" in refused(capsys, "--plan", "--effect", 1, "--sd", 1, "--comparisons", 0)
    assert "--plan needs --effect" in refused(capsys, "--plan", "--sd", 1)
    assert "--plan needs the spread" in refused(capsys, "--plan", "--effect", 0.1)
    missing = refused(capsys, "--plan", "--effect", 0.1, "--aa", tmp_path / "study.csv", "--endpoint", "loss")
    assert "has no line for loss" in missing
    plan.write(tmp_path / "study.csv", [plan.Spread("top1", 8, 45.0, 0.0, 0.0, math.nan, -1.0, 1.0)])
    assert "do not differ in top1" in refused(capsys, "--plan", "--effect", 0.1, "--aa", tmp_path / "study.csv")
