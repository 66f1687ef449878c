"""One run as a job: over two nodes, by sbatch itself, and what a node that cannot work says."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from gab.tracking.record import read
from gab.training import snapshot
from tests.conftest import TINY
from tests.slurm.conftest import ROOT, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SUBMIT = "scripts/slurm/submit.py"  # what train.sbatch calls


def started(out: str) -> SimpleNamespace:
    """The number of a submitted job, the folder of its run and its log, of what was said about it."""
    job, log = out.split("job ")[1].split()[0], Path(out.rpartition("log: ")[2].strip())
    return SimpleNamespace(job=job, folder=log.parents[1], log=log)


def test_a_run_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    words = ["--nodes=2", "--time", "10", *TINY, f"run.dir={tmp_path}", "train.epochs=1"]
    run = started(cluster.call("scripts/slurm/train.sbatch", *words).stdout)
    cluster.await_end(run.job)
    log = run.log.read_text()
    assert cluster.state(run.job) == "COMPLETED", log
    rows = read(run.folder / "record.jsonl")
    assert rows[0]["processes"] == 2
    assert rows[-1]["kind"] == "end"
    assert "node n1: Python" in log
    assert "node n2: Python" in log
    assert "2 x cpu" in log
    again = cluster.python(SUBMIT, *words).out
    assert f"{run.folder} is done: top-1" in again
    assert "is queued" not in again


def test_sbatch_of_the_script_itself_copies_the_code_in_the_job(cluster: Cluster, tmp_path: Path) -> None:
    snapshot.take(ROOT, tmp_path)  # a project folder, as the job leaves files in it
    project = tmp_path / "code"
    options = ["--parsable", "--ntasks-per-node=1", "scripts/slurm/train.sbatch"]
    job = cluster.call("sbatch", *options, *TINY, "train.epochs=1", cwd=project).stdout.strip()
    cluster.await_end(job)
    told = (project / f"slurm-{job}.out").read_text()
    assert cluster.state(job) == "COMPLETED", told
    (folder,) = (project / "runs").iterdir()
    assert f"its log: {folder}/slurm/train.log" in told
    assert (folder / "code" / "train.py").is_file()
    assert OmegaConf.load(folder / "config.yaml").run.name == folder.name
    assert read(folder / "record.jsonl")[-1]["kind"] == "end"


def test_a_node_that_cannot_work_is_named(cluster: Cluster, tmp_path: Path) -> None:
    words = [word for word in TINY if word != "run.device=cpu"]  # so it asks for a GPU, and gets one that is none
    run = started(cluster.python(SUBMIT, "--cpus-per-task=1", *words, f"run.dir={tmp_path}").out)
    cluster.await_end(run.job)
    assert cluster.show(run.job)["ExitCode"] == "2:0"
    assert "error: node n1: SLURM gives the job 1 GPUs there, but PyTorch sees 0" in run.log.read_text()
    assert not (run.folder / "record.jsonl").exists()


def test_what_sbatch_refuses_is_said_in_its_words(cluster: Cluster, tmp_path: Path) -> None:
    refused = cluster.python(SUBMIT, "--partition=none", *TINY, f"run.dir={tmp_path}")
    assert refused.code == 2
    assert "error: sbatch refused: invalid partition specified: none" in refused.err
    assert "Traceback" not in refused.err
