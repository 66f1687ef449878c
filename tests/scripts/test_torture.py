"""The torture is done, and it notices what goes wrong."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gab.errors import LOST_PROCESS, STOPPED
from scripts import victim
from scripts.torture import Kill, Torture, promised
from scripts.victim import CLOSING, EVALUATING, RESUMING, STARTING, TRAINING, WRITING, Victim
from tests.conftest import ROOT
from tests.scripts.test_same_bits import make


@pytest.mark.slow
def test_two_kills(tmp_path: Path) -> None:
    table = tmp_path / "torture.csv"
    given = ["--kills", "2", "--processes", "2", "--epochs", "3", "--csv", str(table)]
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), *given, "--folder", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal in every bit" in done.stdout
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["kills"]) for row in rows) == 2
    assert {row["verdict"] for row in rows} == {"same bits"}


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Victim]:
    """A run that only sleeps, beside a child that does too."""
    script = tmp_path / "train.py"
    script.write_text("import os, time\nos.fork()\ntime.sleep(60)\n")
    monkeypatch.setattr(victim, "TRAIN", str(script))
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "record.jsonl").write_text('{"kind": "train", "epoch": 1.5}\n')
    (folder / "lock.3").touch()
    (folder / "checkpoints" / ".last.pt.part").touch()  # of a start that was killed
    sleeping = Victim(folder, [], count=1, fresh=True, log=tmp_path / "log.txt")
    yield sleeping
    sleeping.destroy()


def test_phases_are_seen_from_outside(sleeper: Victim) -> None:
    folder = sleeper.folder
    part, record = folder / "checkpoints" / ".last.pt.part", folder / "record.jsonl"
    assert sleeper.phase() == STARTING
    (folder / "lock.4").touch()
    assert sleeper.phase() == RESUMING
    part.unlink()
    for row, phase in (('"train", "epoch": 1.75', TRAINING), ('"train", "epoch": 2.0', EVALUATING), ('"end"', CLOSING)):
        record.write_text(f'{{"kind": {row}}}\n')
        os.utime(record, ns=(1, 1))
        assert sleeper.phase() == phase
        assert sleeper.reaches(phase, 0)
    part.touch()
    assert sleeper.phase() == WRITING
    with pytest.raises(TimeoutError, match="did not come to 'training'"):
        sleeper.reaches(TRAINING, 0.05)


def test_processes_left_over_are_found(sleeper: Victim) -> None:
    while sorted(sleeper.members().values()) != ["rank", "worker"]:
        pass
    sleeper.send(signal.SIGKILL, sleeper.leaders[0])
    assert not sleeper.wait(0.5)
    assert len(sleeper.left()) == 1
    sleeper.destroy()
    assert sleeper.codes() == [-signal.SIGKILL]
    assert sleeper.left() == []


def test_differences_and_leftovers_are_faults(tmp_path: Path) -> None:
    torture = Torture(tmp_path, count=1, epochs=1, seed=0)
    one = make(tmp_path / "one")
    torture._compare(one, make(tmp_path / "same"))
    assert torture.faults == []
    torture._compare(one, make(tmp_path / "other", loss=2.5))
    assert torture.faults == ["other differs: record.jsonl 0 loss: 2.0 and 2.5"]
    (tmp_path / "same" / "checkpoints" / ".last.pt.part").touch()
    torture._compare(one, tmp_path / "same")
    assert torture.faults[1:] == ["same has left .last.pt.part"]


def test_promised_exit_codes() -> None:
    def after(number: signal.Signals, phase: str = TRAINING, finished: bool = False, victim: str = "rank") -> set:
        return promised(Kill(number, victim, phase, step=1, fresh=False), finished)

    assert after(signal.SIGTERM) == after(signal.SIGUSR1) == {STOPPED}
    assert after(signal.SIGTERM, finished=True) == {STOPPED, 0}
    assert after(signal.SIGKILL) == {-signal.SIGKILL, LOST_PROCESS}
    assert 1 in after(signal.SIGKILL, victim="worker")
    assert after(signal.SIGUSR1, STARTING) == {STOPPED, -signal.SIGUSR1, -signal.SIGKILL}
