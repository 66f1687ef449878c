"""scripts/aa_study.py: which runs it trains, that they differ in rounding alone, and its table."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gab.comparison import plan
from gab.errors import UserError
from gab.training import snapshot
from scripts import aa_study
from tests.conftest import TINY
from tests.gab.comparison.made import made_run


def test_cells_go_seed_by_seed_and_differ_in_the_micro_batch_alone(tmp_path: Path) -> None:
    cells = list(aa_study.cells(tmp_path, TINY, ["model.gab=true"], seeds=2))
    assert [each.folder.name for each in cells] == ["a-s0", "aa-s0", "b-s0", "a-s1", "aa-s1", "b-s1"]
    assert [each.config.run.micro_batch for each in cells] == [None, 16, None] * 2
    assert [each.config.model.gab for each in cells] == [False, False, True] * 2
    assert [each.config.seed for each in cells] == [0, 0, 0, 1, 1, 1]
    assert {each.folder.parent for each in cells} == {tmp_path / "runs"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3"], "the study sets seed=3 itself: leave it out"),
        (["train.batch_size=33"], "a batch of 33 in a process has no"),
    ],
)
def test_what_cannot_be_studied_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        list(aa_study.cells(tmp_path, [*TINY, *words], [], seeds=2))


BARE = [word for word in TINY if not word.startswith(("model.", "experiment"))]
DIGITS = ["data=digits", "model.patch_size=16"]
TIMM = ["data=digits", "model=timm", "model.name=vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        ([*TINY, "model.proj_drop_rate=0.1"], "blocks.0.attn.proj_drop (Dropout)"),
        ([*TINY, "model.drop_rate=0.1"], "head_drop (Dropout)"),
        ([*BARE, *DIGITS, "model=vitae_t"], "(BatchNorm2d)"),
        ([*BARE, *DIGITS, "model=t2t_vit7"], "(Dropout)"),
        ([*BARE, *TIMM, "model.name=resnet18"], "bn1 (BatchNorm2d)"),
        ([*BARE, *TIMM, "+model.kwargs.patch_drop_rate=0.5"], "patch_drop (PatchDropout)"),
    ],
)
def test_networks_that_depend_on_the_micro_batch_are_refused(
    words: list[str], layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained."""
    with pytest.raises(SystemExit):
        aa_study.main([str(tmp_path / "study"), *words])
    said = capsys.readouterr().err
    assert f"{layer} of this network depends on the micro-batch" in said
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "words",
    [
        [*TINY, "model.attn_drop_rate=0.1"],
        [*TINY, "model.rel_pos=mlp", "model.gab=true"],
        [*BARE, *TIMM, "model.pretrained=true", "model.drop_path_rate=0.1"],
    ],
)
def test_draws_of_samples_and_steps_are_rounding_alone(words: list[str], tmp_path: Path) -> None:
    aa_study.check_network(next(aa_study.cells(tmp_path, words, [], seeds=2)).config)


def test_the_table_has_the_spread_over_seeds_and_that_of_rounding(tmp_path: Path) -> None:
    scores = {"a": [60.0, 62.0, 61.0, 63.0], "aa": [60.2, 62.0, 61.2, 62.8]}
    for arm, values in scores.items():
        for seed, score in enumerate(values):
            made_run(tmp_path / "runs" / f"{arm}-s{seed}", seed=seed, score=score)
    spreads = aa_study.measured(tmp_path, seeds=4)
    a, aa = map(np.array, scores.values())
    assert [one.endpoint for one in spreads] == ["top1", "loss"]
    assert spreads[0].sd == pytest.approx(np.sqrt((a.var(ddof=1) + aa.var(ddof=1)) / 2))
    assert spreads[0].rounding == pytest.approx((aa - a).std(ddof=1) / np.sqrt(2))
    assert spreads[0].correlation == pytest.approx(np.corrcoef(a, aa)[0, 1])
    plan.write(tmp_path / "study.csv", spreads)
    assert plan.read(tmp_path / "study.csv", "top1").sd == pytest.approx(spreads[0].sd, rel=1e-5)
    assert "Seeds in each arm that find a difference in top1 (points), in a " in aa_study.report(tmp_path, spreads)


@pytest.mark.parametrize(
    ("rounding", "said"),
    [
        ([0.0] * 5, "near one: these runs are too short or too smooth"),  # r is 1, and no interval is known
        ([0.02, -0.01, 0.0, 0.01, -0.02], "near one: these runs are too short or too smooth"),
        ([3.0, -2.0, 1.0, 0.0, -2.5], "expect no gain from pairing by seed"),
    ],
)
def test_what_the_correlation_means(rounding: list[float], said: str, tmp_path: Path) -> None:
    for seed, (score, moved) in enumerate(zip([60.0, 62.0, 61.0, 63.0, 60.5], rounding, strict=True)):
        made_run(tmp_path / "runs" / f"a-s{seed}", seed=seed, score=score)
        made_run(tmp_path / "runs" / f"aa-s{seed}", seed=seed, score=score + moved)
    spreads = aa_study.measured(tmp_path, seeds=5)
    assert said in aa_study.report(tmp_path, spreads)
    unknown = replace(spreads[0], correlation=math.nan)
    assert "not known: that takes three or more seeds" in aa_study.report(tmp_path, [unknown])


def test_runs_that_began_otherwise_are_no_study(tmp_path: Path) -> None:
    for arm in ("a", "aa"):
        for seed in range(2):
            weights = {"head": f"{arm}{seed}"}
            made_run(tmp_path / "runs" / f"{arm}-s{seed}", seed=seed, start={"weights": weights})
    with pytest.raises(UserError, match="aa-s0 began with other weights than .*a-s0, so the two differ in more than"):
        aa_study.measured(tmp_path, seeds=2)


@pytest.mark.slow
def test_a_study_trains_what_is_missing_and_ends_with_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path), "--seeds", "2", "--parallel", "2", *TINY, "train.max_steps=2"]
    aa_study.main(words)
    assert sorted(each.name for each in (tmp_path / "runs").iterdir()) == ["a-s0", "a-s1", "aa-s0", "aa-s1"]
    assert (tmp_path / snapshot.FOLDER / "train.py").is_file()
    assert "correlation of runs of one seed" in capsys.readouterr().out
    table = (tmp_path / "study.csv").read_bytes()
    aa_study.main(words)
    assert "..." not in capsys.readouterr().out  # nothing was trained again
    assert (tmp_path / "study.csv").read_bytes() == table
