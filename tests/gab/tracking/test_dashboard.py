"""The workspace: its names are those that a run logs; it is saved at a server; what goes wrong is a sentence."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gab.errors import UserError
from gab.tracking import dashboard
from gab.tracking.media import images
from gab.tracking.metrics import AXES, BEST, metrics
from scripts import wandb_dashboard
from tests.gab.tracking.peer import Peer

LOOKED_AT = [
    "evaluators=[top1,erf,bias_maps,position_similarity,attention_distance,rollout]",
    *("evaluators.erf.images=8", "evaluators.erf.target=2", "train.ema_decay=0.5", "model.position=learnable"),
    *("evaluators.attention_distance.images=2", "evaluators.rollout.images=1"),
]


@pytest.fixture(scope="module")
def run(tiny_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with the Gaussian, averaged weights and every evaluator that draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAB_FIGURES", "png")  # what W&B is sent
        patch.setattr("gab.evaluators.bias_figures.MOST_HEADS", 0)  # no figure of every head
        return tiny_run(tmp_path_factory.mktemp("seen"), "model.gab=true", "train.max_steps=4", *LOOKED_AT)


@pytest.fixture(scope="module")
def logged(run: Path, rows: Callable[..., list[dict]]) -> set[str]:
    """Every key of the run's W&B history, with what a CPU has no number for."""
    found = set(AXES)
    for row in rows(run):
        if row["kind"] != "start":
            found |= metrics(row).keys() | {f"{row['kind']}/{field}" for field in row if row[field] is None}
            found |= images(row, run).keys()
    return found


def panels(spec: dict) -> Iterator[dict[str, Any]]:
    """What is set of every panel."""
    for section in spec["section"]["panelBankConfig"]["sections"]:
        yield from (panel["config"] for panel in section["panels"])


@pytest.fixture(scope="module")
def spec() -> dict:
    """The default workspace, as it is sent."""
    return json.loads(dashboard.spec(dashboard.workspace("vit")))


def test_every_metric_of_a_panel_is_one_that_runs_log(spec: dict, logged: set[str]) -> None:
    used = {key for panel in panels(spec) for key in (*panel.get("metrics", []), *panel.get("mediaKeys", []))}
    used |= {panel["xAxis"] for panel in panels(spec) if "xAxis" in panel}
    assert {
        "eval/top1",
        "train/loss",
        "train/mfu",
        "figures/erf",
        "figures/erf_targets_ema",
        "figures/rollout",
        "epoch",
    } <= used
    assert used - logged == set()


def test_layers_are_all_found_and_nothing_else(spec: dict, logged: set[str]) -> None:
    patterns = [panel["metricRegex"] for panel in panels(spec) if panel.get("useMetricRegex")]
    found = [sorted(key for key in logged if re.search(pattern, key)) for pattern in patterns]
    assert found == [[f"{field}/layer_{layer:02d}" for layer in (1, 2)] for field in ("sigma", "amplitude")]
    per_head = metrics({"kind": "eval", "sigma": [[1.0, 2.0]], "amplitude": [[3.0, 4.0]]})
    assert [sum(bool(re.search(pattern, key)) for key in per_head) for pattern in patterns] == [2, 2]


def test_every_column_is_one_that_runs_have(spec: dict, run: Path, logged: set[str]) -> None:
    [runs] = spec["section"]["runSets"]
    assert runs["runFeed"]["columnOrder"] == ["run:displayName", *dashboard.COLUMNS]
    config = yaml.safe_load((run / "config.yaml").read_text())
    [start] = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines() if '"start"' in line]
    summaries = logged - set(BEST) | {f"{key}.{which}" for key in BEST for which in ("max", "last")}
    for column in dashboard.COLUMNS:
        section, name = column.split(":")
        if section == "summary":
            assert name in summaries
        elif section == "config":
            first, _, rest = name.partition(".value")
            assert first in start if not rest else rest[1:] in config[first]


def test_arms_are_means_over_seeds_with_their_deviation(spec: dict) -> None:
    drawn = [panel for panel in panels(spec) if "mediaKeys" not in panel]
    assert len(drawn) > 10
    for panel in drawn:
        assert (panel["groupBy"], panel["aggregate"]) == ("variant.value", True)
        assert (panel["groupAgg"], panel["groupArea"], panel["limit"]) == ("mean", "stddev", dashboard.MOST_RUNS)
    assert all(panel["xAxis"] == "epoch" for panel in drawn if "metrics" in panel and "vertical" not in panel)


def test_only_the_wanted_runs(capsys: pytest.CaptureFixture[str], no_account: None) -> None:
    """Without a network, from the command line."""
    wandb_dashboard.main(["--project", "p", "--dry", "--where", "data.name=digits", "train.epochs=2,300"])
    [runs] = json.loads(capsys.readouterr().out)["section"]["runSets"]
    assert [(one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]] == [
        ("data.name", "IN", ["digits"]),
        ("train.epochs", "IN", [2, 300]),
    ]
    assert [key["key"]["name"] for key in runs["sort"]["keys"]] == ["variant.value", "seed.value"]


def test_it_is_saved(peer: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    peer.projects.add("vit")
    wandb_dashboard.main(["--project", "vit", "--name", "Mine"])
    [(name, view)] = peer.views.items()
    assert capsys.readouterr().out == f"{peer.url}/lab/vit?nw={name.removeprefix('nw-').removesuffix('-v')}\n"
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("lab", "vit", "Mine")
    assert view["type"] == "project-view"
    assert {"eval/top1"} in [set(panel.get("metrics", [])) for panel in panels(view["spec"])]


def test_a_project_that_is_not_there_is_a_sentence(peer: Peer) -> None:
    with pytest.raises(UserError, match="W&B has no project team/vit that you may see: give another project"):
        dashboard.save("vit", "team")
    assert peer.views == {}


def test_a_server_that_refuses_the_view_is_a_sentence(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    peer.projects.add("vit")
    monkeypatch.setattr(dashboard, "_exists", lambda *_: peer.behave(403) or True)
    with pytest.raises(UserError, match="W&B did not take the view"):
        dashboard.save("vit", "lab")


def test_without_a_login_it_is_a_sentence(no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="W&B did not answer .*: check your key"):
        dashboard.save("vit")


def test_without_the_package_it_is_a_sentence(no_account: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match="wandb-workspaces is not installed: install it with `make setup`"):
        dashboard.workspace("vit")


def test_where_needs_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wandb_dashboard.main(["--project", "p", "--dry", "--where", "data.name"])
    assert capsys.readouterr().err == "error: --where data.name: write KEY=VALUE or KEY=A,B\n"
