import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gab.distributed import slurm
from gab.errors import UserError


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`scontrol(script)`: the only scontrol there is; returns the file in which it notes its words."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    calls = tmp_path / "calls"

    def put(script: str) -> Path:
        path = tmp_path / "scontrol"
        path.write_text(f'#!/bin/sh\necho "$@" >>"{calls}"\n{script}\n')
        path.chmod(0o755)
        return calls

    return put


def job(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_requeue(scontrol: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = scontrol("")
    job(monkeypatch, JOB_ID="81")
    assert slurm.requeue() == "job 81 is queued again"
    assert calls.read_text() == "requeue 81\n"


def test_requeue_of_the_last_member_alone(scontrol: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job id is that of the array: given that, SLURM would requeue all members."""
    calls = scontrol("")
    job(monkeypatch, JOB_ID="81", ARRAY_JOB_ID="81", ARRAY_TASK_ID="3")
    assert slurm.requeue() == "job 81_3 is queued again"
    assert calls.read_text() == "requeue 81_3\n"


def test_requeue_refused(scontrol: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol("echo 'Job may not be requeued' >&2; exit 1")
    job(monkeypatch, JOB_ID="81")
    assert slurm.requeue() == (
        "job 81 was not requeued (Job may not be requeued); `sbatch --requeue` would allow it: `scontrol requeue 81` "
        "on a login node, or submit the same command again, to go on"
    )


def test_requeue_without_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job(monkeypatch, JOB_ID="81")
    assert slurm.requeue() == (
        "job 81 was not requeued, as there is no scontrol here (in a container?): `scontrol requeue 81` on a login "
        "node, or submit the same command again, to go on"
    )


def test_requeue_without_an_answer(scontrol: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol("exec sleep 60")
    monkeypatch.setattr(slurm, "PATIENCE", 0.3)
    job(monkeypatch, JOB_ID="81")
    assert slurm.requeue().startswith("job 81 was perhaps not requeued, as scontrol gave no answer in 0.3 s")


def test_requeue_outside_a_job() -> None:
    assert slurm.requeue() == "this is no job of SLURM: start the same command again to go on"


def test_srun_meets_on_the_first_node_of_the_step(scontrol: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol('[ "$3" = "n[7-8]" ] && printf "n7\\nn8\\n"')
    job(monkeypatch, STEP_NODELIST="n[7-8]", JOB_ID="40001", STEP_ID="2")
    monkeypatch.setenv("MASTER_ADDR", "set by this test")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    slurm.meeting_point()
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("n7", str(20000 + 40001 % 20000 + 2 * 97))
    slurm.meeting_point()  # set: nothing is asked
    monkeypatch.delenv("MASTER_PORT")
    scontrol("exit 1")
    with pytest.raises(UserError, match="export MASTER_ADDR and MASTER_PORT"):
        slurm.meeting_point()


def test_scontrol_that_hangs_is_no_traceback(scontrol: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol("exec sleep 60")
    monkeypatch.setattr(slurm, "PATIENCE", 0.3)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="export MASTER_ADDR") as refused:
        slurm.meeting_point()
    assert isinstance(refused.value.__cause__, subprocess.TimeoutExpired)
