"""Grids, options of sbatch, and how a run stands, without SLURM."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig

from conf.checks import fill_in
from conf.schema import plain
from gab.errors import UserError
from gab.training.run_folder import run_name
from scripts.slurm import jobs, submit, sweep
from scripts.slurm.jobs import Resources, standing
from scripts.slurm.plan import Plan, plan, quoted
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        (["seed=0"], [["seed=0"]]),
        (["s=0,1", "m=a,b"], [["s=0", "m=a"], ["s=0", "m=b"], ["s=1", "m=a"], ["s=1", "m=b"]]),
        (["s=range(0,2)", "m=choice(a,b)"], [["s=0", "m=a"], ["s=0", "m=b"], ["s=1", "m=a"], ["s=1", "m=b"]]),
        (["data.crop.scale=[0.2,1.0]"], [["data.crop.scale=[0.2,1.0]"]]),
        (["data.crop.scale=[0.2,1.0],[0.4,1.0]"], [["data.crop.scale=[0.2,1.0]"], ["data.crop.scale=[0.4,1.0]"]]),
        (["tracking.notes='a, b'"], [["tracking.notes='a, b'"]]),
        (["tracking.notes='a, b',c"], [["tracking.notes='a, b'"], ["tracking.notes=c"]]),
        (["+model.kwargs.x=1,2", "~debug"], [["+model.kwargs.x=1", "~debug"], ["+model.kwargs.x=2", "~debug"]]),
    ],
)  # fmt: skip
def test_grid_is_read_as_hydra_reads_it(words: list[str], cells: list[list[str]]) -> None:
    assert sweep.grid(words) == cells


def test_what_is_no_list_of_values_is_refused() -> None:
    with pytest.raises(UserError, match="write KEY=A,B,C"):
        sweep.grid(["optim.lr=interval(0,1)"])
    with pytest.raises(HydraException):
        sweep.grid(["seed=0,"])


@pytest.mark.parametrize(
    ("given", "nodes", "gpus", "tasks", "added"),
    [
        ([], 1, 1, 1, {"--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=8"}),
        (["-N", "4", "--gpus-per-node=8", "-c", "12"], 4, 8, 8, {"--ntasks-per-node=8"}),
        (["--nodes=2", "--gres=gpu:a100:4", "--cpus-per-gpu=10"], 2, 4, 4, {"--ntasks-per-node=4"}),
        (["--gpus-per-node=h100:2", "--ntasks-per-node=1", "--cpus-per-task=3"], 1, 2, 1, set()),
    ],
)
def test_defaults_fill_what_is_not_given(given: list[str], nodes: int, gpus: int, tasks: int, added: set[str]) -> None:
    found = Resources.of(given, cpu_only=False)
    assert (found.nodes, found.gpus, found.tasks) == (nodes, gpus, tasks)
    assert set(found.options) - set(given) == added


def test_without_gpus_none_are_asked_for_and_packed_runs_get_one_each() -> None:
    assert Resources.of([], cpu_only=True).options == ("--ntasks-per-node=1",)
    assert Resources.of([], cpu_only=True, pack=4).tasks == 4
    packed = Resources.of([], cpu_only=False, pack=4)
    assert (packed.gpus, packed.tasks) == (4, 4)
    with pytest.raises(UserError, match="not a number"):
        Resources.of(["--nodes=2-4"], cpu_only=True)


@pytest.mark.parametrize("word", ["--gpus=8", "-G", "--ntasks=4", "--gpus-per-task=1"])
def test_totals_are_refused(word: str) -> None:
    with pytest.raises(
        UserError, match=f"{word} leaves open what each node has: take --nodes=NUMBER and --.*-per-node"
    ):
        Resources.of([word], cpu_only=False)


def test_words_are_parted_into_options_and_overrides() -> None:
    words = ["-p", "gpu", "--nodes=2", "model=vit_s16", "--time", "1:00", "~debug", "--exclusive", "seed=0"]
    options = ["-p", "gpu", "--nodes=2", "--time", "1:00", "--exclusive"]
    assert submit.split(words) == (options, ["model=vit_s16", "~debug", "seed=0"])


@pytest.fixture
def run(tmp_path: Path) -> Plan:
    """A planned run whose folder is as a submission leaves it."""
    odd = quoted(f"{tmp_path}/it's a folder")
    made = plan([*TINY, f"run.dir={odd}"], gpus=0, processes=1)
    (made.folder / "slurm").mkdir(parents=True)
    return made


def write(run: Plan, name: str, text: str) -> None:
    (run.folder / name).write_text(text)


def test_the_name_is_that_of_train_py(run: Plan, config: Callable[..., DictConfig]) -> None:
    cfg = config(*TINY)
    fill_in(cfg, "cpu")
    assert run.folder.name == run_name(plain(cfg), "vit_mini8")


def test_a_gpu_is_taken_to_know_bfloat16(run: Plan) -> None:
    words = [word for word in TINY if word != "run.device=cpu"]
    assert plan(words, gpus=1, processes=1).config.train.precision == "bf16"
    assert plan(words, gpus=0, processes=1).config.train.precision == "fp32"
    assert run.config.train.precision == "fp32"


def test_the_words_of_a_job_lead_to_the_folder_of_the_plan(run: Plan) -> None:
    again = plan(run.train_words, gpus=0, processes=1)
    assert again.folder == run.folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=vit_s16"], "modle"),
        (["train.batch_size=33"], "train.batch_size=33 does not divide into 2 processes"),
        (["train.batch_size=4000"], "do not fill one batch"),
        (["train.test=best"], "train.test=best is for test images"),
        (["evaluators=[v2]"], "the images of evaluators=.v2. are of ImageNet's 1,000 classes, but data=digits"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_it_is_submitted(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan([*TINY, *words], gpus=0, processes=2)


def test_two_cells_that_are_one_run_are_refused(tmp_path: Path) -> None:
    cells = sweep.grid([*TINY, f"run.dir={tmp_path}", "run.workers=1,2"])
    with pytest.raises(UserError, match="is the same run as"):
        sweep.plan_all(cells, Resources.of([], cpu_only=True), pack=1)


def row(**fields: object) -> str:
    return json.dumps(fields) + "\n"


def test_how_a_run_stands(run: Plan) -> None:
    assert standing(run, "train", {}).state == "not submitted"
    write(run, "slurm/train.job", "7_1\n")
    assert standing(run, "train", {"7_1": "PENDING"}) == jobs.Standing("waiting", "(job 7_1)")
    assert standing(run, "train", {"7_1": "RUNNING"}) == jobs.Standing("running", "starts (job 7_1)")
    write(run, "record.jsonl", row(kind="train", epoch=1.25))
    assert standing(run, "train", {"7_1": "RUNNING"}) == jobs.Standing("running", "at epoch 1.25 of 2 (job 7_1)")
    told = [
        "started",
        "error: the disk is full",
        "srun: error: n1: task 0: Exited",
        "",
        "/spool/slurm_script: line 6: Killed",
    ]
    write(run, "slurm/train.log", "\n".join(told))
    words = standing(run, "train", {}).detail
    assert words == "at epoch 1.25 of 2 (killed, or its node failed): error: the disk is full"
    write(run, "slurm/train.exit", "6_1 75\n")  # of an earlier job
    assert standing(run, "train", {}).state == "failed"
    write(run, "slurm/train.exit", "7_1 2\n")
    assert standing(run, "train", {}).detail == "at epoch 1.25 of 2 (code 2): error: the disk is full"
    write(run, "slurm/train.exit", "7_1 75\n")
    assert standing(run, "train", {}) == jobs.Standing("stopped", "at epoch 1.25 of 2")
    write(run, "record.jsonl", row(kind="end", epoch=2, top1=81.234))
    assert standing(run, "train", {}) == jobs.Standing("done", "top-1 81.23 %")


def test_the_table_names_only_what_differs(tmp_path: Path) -> None:
    cells = sweep.grid([*TINY, f"run.dir={tmp_path}", "seed=0,1"])
    plans = sweep.plan_all(cells, Resources.of([], cpu_only=True), pack=1)
    assert sweep.table(plans, {}).splitlines() == ["seed=0  not submitted", "seed=1  not submitted", "2 not submitted"]


def test_without_slurm_one_is_sent_to_a_login_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no squeue here: run this on a login node"):
        jobs.queued()


@pytest.mark.parametrize(
    ("script", "message"),
    [("exec sleep 60", "squeue gave no answer in 0.5 s"), ("echo down >&2; exit 1", "squeue refused: down ")],
)
def test_a_controller_that_is_down(script: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/bash\n{script}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(jobs, "PATIENCE", 0.5)
    with pytest.raises(UserError, match=message):
        jobs.queued()


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., sweep.Sweep]:
    """A submitted sweep of two seeds, with further settings."""

    def make(*words: str) -> sweep.Sweep:
        cells = sweep.grid([*TINY, f"run.dir={tmp_path}", "seed=0,1", *words])
        plans = sweep.plan_all(cells, Resources.of([], cpu_only=True), pack=1)
        made = sweep.Sweep(plans, [], sweep.parse(["seed=0"])[0])
        made.folder.mkdir(parents=True, exist_ok=True)
        return made

    return make


def test_a_sweep_has_a_dashboard_of_its_own_runs_saved_once(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sweep.dashboard, "save", lambda *given, **more: asked.append((given, more)) or "http://w/v")
    made = planned("tracking.wandb=online", "tracking.project=vit", "tracking.entity=lab")
    assert made.dashboard() == made.dashboard() == "dashboard: http://w/v\n"
    names = [each.folder.name for each in made.plans]
    assert asked == [(("vit", "lab"), {"name": made.folder.name, "where": {"run.name": names}})]


def test_runs_kept_offline_have_no_dashboard_and_a_missing_one_stops_nothing(
    planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise UserError("W&B has no project")

    monkeypatch.setattr(sweep.dashboard, "save", refuse)
    assert planned("tracking.wandb=offline").dashboard() == planned().dashboard() == ""
    said = planned("tracking.wandb=online").dashboard()
    assert said == "dashboard: none yet, the same command with --status tries again (W&B has no project)\n"
