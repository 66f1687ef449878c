"""Who is to blame, judged from what processes have told."""

import pytest

from gab.distributed.verdict import Member, Report, hung, killed

MEMBERS = [Member(rank, 3, f"n{rank}", 100 + rank) for rank in range(3)]
ON_TIME = Report("training", 5)
WAITING = Report("training", 5, late=50.0, waiting=True, place="reducer.py:1 in backward")
BUSY = Report("training", 5, late=48.0, place="loader.py:7 in read")


def test_all_is_well() -> None:
    assert hung(MEMBERS, {0: ON_TIME, 1: ON_TIME, 2: ON_TIME}) is None


def test_the_one_that_does_not_wait() -> None:
    verdict = hung(MEMBERS, {0: WAITING, 1: BUSY, 2: WAITING})
    assert verdict
    assert verdict.code == 3
    assert verdict.sentence == (
        "process 1 of 3 (host n1, pid 101), at loader.py:7 in read: no progress for 48 s at step 5 while training. "
        "Ended: the same command goes on from the last checkpoint"
    )


@pytest.mark.parametrize("step", [4, 5])
def test_one_in_a_longer_phase_is_waited_for(step: int) -> None:
    assert hung(MEMBERS, {0: Report("saving", step), 1: WAITING, 2: WAITING}) is None


def test_one_ahead_does_not_excuse_those_behind() -> None:
    verdict = hung(MEMBERS, {0: Report("training", 6), 1: BUSY, 2: WAITING})
    assert verdict
    assert verdict.sentence.startswith("process 1 of 3")


def test_nobody_is_busy() -> None:
    verdict = hung(MEMBERS, {0: WAITING, 1: WAITING, 2: WAITING})
    assert verdict
    assert verdict.sentence.startswith(
        "all processes wait at step 5 while training for 50 s, for one another or the network: process 0 of 3"
    )


def test_before_the_first_step_there_is_no_checkpoint_to_name() -> None:
    assert killed(MEMBERS[2], Report()).sentence.endswith(
        "process 2 of 3 (host n2, pid 102) was killed while starting, perhaps out of memory (see `dmesg` on n2): "
        "start the same command again"
    )


def test_in_a_job_its_accounting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "81")
    assert "(see `dmesg` on n2, `sacct -j 81 --format=JobID,State,MaxRSS`)" in killed(MEMBERS[2], ON_TIME).sentence
