"""A sweep that everything happens to: one run is cancelled, one cannot start, one is warned and queued again."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gab.tracking.record import read
from scripts.same_bits import differences
from tests.conftest import TINY
from tests.gab.tracking.conftest import records
from tests.slurm.conftest import Cluster, await_true

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STEPS = 100
LONG = [*TINY, "train.epochs=10", "model.gab=true,false", "seed=0,1"]
SETTINGS = ["model.gab=True seed=0", "model.gab=True seed=1", "model.gab=False seed=0", "model.gab=False seed=1"]


def sweep(cluster: Cluster, *words: str) -> str:
    """What `python scripts/slurm/sweep.py WORDS` prints."""
    done = cluster.python("scripts/slurm/sweep.py", *words)
    assert done.code == 0, done.err
    return done.out


def under_way(folder: Path) -> bool:
    """Whether a run has trained some steps."""
    record = folder / "record.jsonl"
    return record.is_file() and any(row["kind"] == "train" for row in read(record))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the jobs have, since the number of threads decides how sums round."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What came of a 2 x 2 sweep of two jobs at once, where
    0 is cancelled, 1 is left alone, 2 finds a file where its checkpoints should go, and
    3, whose job's number is that of the array, is warned by USR1.
    """
    folder = tmp_path_factory.mktemp("sweep")
    words = [*LONG, f"run.dir={folder}", "tracking.wandb=offline", "--limit", "2"]
    said = sweep(cluster, *words)
    array = said.split("train: job ")[1].split(",")[0]
    work = next(folder.glob("sweeps/*/train-1.work")).read_text().splitlines()
    runs = [Path(line.split()[0]) for line in work]
    (runs[2] / "checkpoints").touch()
    jobs = [f"{array}_{number}" for number in range(4)]
    most = [0]

    def running(*which: int) -> bool:
        states = cluster.call("squeue", "--noheader", "--array", "--states=running", f"--jobs={array}").stdout
        most[0] = max(most[0], len(states.splitlines()))
        return all(under_way(runs[number]) for number in which)

    await_true("the first member under way", lambda: running(0))
    cluster.call("scancel", jobs[0])
    await_true("the last member under way", lambda: running(3))
    cluster.call("scancel", "--signal=USR1", jobs[3])
    await_true("the last member stopped", lambda: cluster.state(jobs[3]) == "PENDING")
    cluster.await_end(*jobs[:3])
    between = sweep(cluster, *words, "--status")
    cluster.start_again(jobs[3])
    cluster.await_end(*jobs)
    restarts = [cluster.show(job)["Restarts"] for job in jobs]
    return SimpleNamespace(
        folder=folder, words=words, said=said, runs=runs, jobs=jobs, most=most[0], between=between, restarts=restarts
    )


def test_two_members_run_at_once_and_no_more(story: SimpleNamespace) -> None:
    assert "4 runs, at most 2 jobs at once" in story.said
    assert story.most == 2


def test_status_tells_what_became_of_each(story: SimpleNamespace) -> None:
    zero, one, two, three, *_ = story.between.splitlines()
    assert zero.startswith(f"{SETTINGS[0]}   stopped        at epoch ")
    assert one.startswith(f"{SETTINGS[1]}   done           top-1 ")
    assert two.startswith(f"{SETTINGS[2]}  failed         (code 2): error: the run folder {story.runs[2]} cannot be")
    assert three.startswith(f"{SETTINGS[3]}  waiting        at epoch ")
    assert f"(job {story.jobs[3]})" in three


def test_the_last_member_is_queued_again_alone_and_ends_as_if_undisturbed(
    story: SimpleNamespace, cluster: Cluster, tiny_run: Callable[..., Path], one_thread: None, tmp_path: Path
) -> None:
    assert story.restarts == ["0", "0", "0", "1"]
    assert cluster.state(story.jobs[3]) == "COMPLETED"
    assert "start 2, on n" in (story.runs[3] / "slurm" / "train.log").read_text()
    assert differences(story.runs[3], tiny_run(tmp_path, f"train.epochs={STEPS // 10}", *SETTINGS[3].split())) == []


def test_it_is_one_run_of_wandb(story: SimpleNamespace) -> None:
    parts = sorted(story.runs[3].glob("wandb/offline-run-*/*.wandb"))
    assert len(parts) == 2  # of two starts
    kept = [record for part in parts for record in records(part)]
    names = {record.run.run_id for record in kept if record.WhichOneof("record_type") == "run"}
    rows = [record.history.item for record in kept if record.WhichOneof("record_type") == "history"]
    steps = [int(item.value_json) for row in rows for item in row if (item.key or item.nested_key[0]) == "_step"]
    assert names == {(story.runs[3] / "wandb_id").read_text().strip()}
    assert steps == list(range(len(steps)))
    assert len(steps) == len(read(story.runs[3] / "record.jsonl")) - 1  # the last row is the summary


def test_the_same_command_again_submits_only_what_has_not_ended(story: SimpleNamespace, cluster: Cluster) -> None:
    (story.runs[2] / "checkpoints").unlink()
    dry = sweep(cluster, *story.words, "--dry-run", "--compare")
    assert "train: 2 runs" in dry
    assert SETTINGS[0] in dry
    assert SETTINGS[1] not in dry
    assert not list(story.folder.glob("sweeps/*/train-2.work"))
    said = sweep(cluster, *story.words, "--evaluate", "--compare")
    assert f"{story.runs[0]} goes on with the code that it began with" in said
    train = said.split("train: job ")[1].split(",")[0]
    compare = said.split("compare: job ")[1].split(",")[0]
    nothing = sweep(cluster, *story.words)
    assert nothing == "train: nothing to submit, every run has ended or is queued\n"
    cluster.await_end(f"{train}_0", f"{train}_1", compare)
    rows = [row["step"] for row in read(story.runs[0] / "record.jsonl") if row["kind"] == "train"]
    assert rows == list(range(1, STEPS + 1))  # it went on from where scancel stopped it
    assert "continues the run at epoch" in (story.runs[0] / "slurm" / "train.log").read_text()
    for run in story.runs:
        assert json.loads((run / "eval" / "scores.json").read_text())["scores"]["raw"]["images"] == 360
    table = next(story.folder.glob("sweeps/*/comparison.csv")).read_text().splitlines()
    assert table[0].startswith("data,model.gab,runs,seeds,top1_mean")
    assert len(table) == 3


def test_packed_runs_are_queued_again_together_when_all_have_saved(cluster: Cluster, tmp_path: Path) -> None:
    words = [*LONG, f"run.dir={tmp_path}", "seed=0", "--pack", "2", "--", "--cpus-per-task=1"]
    words.remove("seed=0,1")
    said = sweep(cluster, *words)
    job = f"{said.split('train: job ')[1].split(',')[0]}_0"
    runs = [Path(line.split()[0]) for line in next(tmp_path.glob("sweeps/*/train-1.work")).read_text().splitlines()]
    await_true("both under way", lambda: all(map(under_way, runs)))
    cluster.call("scancel", "--signal=USR1", job)
    cluster.start_again(job)
    saved = [(run / "slurm" / "train.exit").read_text() for run in runs]
    cluster.await_end(job)
    assert saved == [f"{job} 75\n"] * 2
    assert cluster.state(job) == "COMPLETED"
    assert [read(run / "record.jsonl")[-1]["kind"] for run in runs] == ["end", "end"]
