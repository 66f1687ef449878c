"""Real processes that end in every way, started by ourselves and given by torchrun or srun."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gab.distributed import heartbeat, launch, signals
from gab.distributed.processes import Processes
from gab.errors import Stopped, UserError

BOTH = pytest.mark.parametrize("given", [False, True], ids=["started", "given"])
WHO = r"process {} of 2 \(host \S+, pid \d+\)"


def meet(processes: Processes, step: int = 1_204) -> None:
    """Train a step; long enough that the others have heard of it."""
    processes.heartbeat.at("training", step)
    processes.barrier()
    time.sleep(0.5)
    print(f"rank {processes.rank} is process {os.getpid()}.", flush=True)


def wait_for_the_others(processes: Processes) -> None:
    """As a step does, in which one waits for a process that is no more."""
    processes.sum(torch.ones(1))


def pids(*started) -> dict[int, int]:
    return {int(r): int(pid) for one in started for r, pid in re.findall(r"rank (\d) is process (\d+)\.", one.text)}


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


# -- all is well -------------------------------------------------------------------------------------------------------


def work_well(processes: Processes) -> None:
    total = processes.sum(torch.tensor([float(processes.rank + 1)]))
    same = processes.broadcast(processes.rank)
    print(f"sum {total.item():.0f}, {processes.gather_objects(processes.rank)}, {same}", flush=True)


@BOTH
def test_all_done(start: Callable, given: bool) -> None:
    started = start(work_well, given=given)
    assert [one.wait() for one in started] == [0] * len(started)
    assert "".join(one.text for one in started) == "sum 3, [0, 1], 0\n" * 2


# -- one process ends --------------------------------------------------------------------------------------------------


def be_killed(processes: Processes, rank: int) -> None:
    meet(processes)
    if processes.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_the_others(processes)


@BOTH
@pytest.mark.parametrize("rank", [0, 1])
def test_killed(start: Callable, given: bool, rank: int) -> None:
    started = start(be_killed, rank, given=given)
    codes = [one.wait() for one in started]
    assert codes == ([3] if not given else [-9, 3] if rank == 0 else [3, -9])
    said = "".join(re.sub(r"rank .*\n", "", one.text) for one in started)
    assert re.fullmatch(
        rf"error: {WHO.format(rank)} was killed at step 1,204 while training, perhaps out of memory "
        r"\(see `dmesg` on \S+\): the same command goes on from the last checkpoint\n",
        said,
    ), said


def be_killed_with_a_worker(processes: Processes) -> None:
    """A worker of a loader holds all lines of its process open, and lives on for a while."""
    meet(processes)
    if processes.rank == 1:
        if not os.fork():
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_the_others(processes)


@BOTH
def test_killed_before_its_workers(start: Callable, given: bool) -> None:
    started = start(be_killed_with_a_worker, given=given)
    assert started[0].wait() == 3
    assert re.search(rf"error: {WHO.format(1)} was killed at step 1,204", started[0].text), started[0].text


def be_stopped(processes: Processes, rank: int) -> None:
    meet(processes)
    if processes.rank == rank:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_the_others(processes)


@BOTH
@pytest.mark.parametrize("rank", [0, 1])
def test_silent(start: Callable, given: bool, rank: int) -> None:
    started = start(be_stopped, rank, given=given)
    if given:
        assert started[1 - rank].wait() == 3
    else:
        assert started[0].wait() == 3
        assert all(gone(pid) for pid in pids(*started).values())
    said = "".join(re.sub(r"rank .*\n", "", one.text) for one in started)
    assert re.fullmatch(
        rf"error: {WHO.format(rank)} has said nothing for 2 s at step 1,204 while training, it is stopped, or its "
        r"machine is gone \(see `ping \S+`\): the same command goes on from the last checkpoint\n",
        said,
    ), said


def hang(processes: Processes, rank: int) -> None:
    heartbeat.LIMITS["training"] = 1.0
    meet(processes)
    if processes.rank == rank:
        time.sleep(1000)
    wait_for_the_others(processes)


@BOTH
@pytest.mark.parametrize("rank", [0, 1])
def test_hung(start: Callable, given: bool, rank: int) -> None:
    started = start(hang, rank, given=given)
    assert [one.wait() for one in started] == [3] * len(started)
    said = "".join(re.sub(r"rank .*\n", "", one.text) for one in started)
    assert re.fullmatch(
        rf"error: {WHO.format(rank)}, at \S+test_launch.py:\d+ in hang: no progress for \d+ s at step 1,204 while "
        r"training. Ended: the same command goes on from the last checkpoint\n",
        said,
    ), said


def wait_for_a_long_phase(processes: Processes) -> None:
    """Rank 1 is late in its step, because rank 0 may take longer in its own phase."""
    heartbeat.LIMITS.update(training=1.0, saving=60.0)
    meet(processes, step=1)
    if processes.first:
        processes.heartbeat.at("saving", 1)
        time.sleep(2.5)
    wait_for_the_others(processes)


def test_who_waits_is_not_hung(start: Callable) -> None:
    assert start(wait_for_a_long_phase)[0].wait() == 0


def fail(processes: Processes, rank: int, error: Exception) -> None:
    meet(processes, step=7)
    if processes.rank == rank:
        raise error
    wait_for_the_others(processes)


@BOTH
@pytest.mark.parametrize("rank", [0, 1])
def test_user_error(start: Callable, given: bool, rank: int) -> None:
    started = start(fail, rank, UserError("lower optim.lr"), given=given)
    assert [one.wait() for one in started] == [2] * len(started)
    assert "".join(re.sub(r"rank .*\n", "", one.text) for one in started) == "error: lower optim.lr\n"


@BOTH
@pytest.mark.parametrize("rank", [0, 1])
def test_exception(start: Callable, given: bool, rank: int) -> None:
    started = start(fail, rank, ZeroDivisionError("by zero\nand more"), given=given)
    assert [one.wait() for one in started] == [3] * len(started)
    said = "".join(one.text for one in started)
    assert said.count("Traceback") == 1
    assert re.search(r'File ".*test_launch.py", line \d+, in fail', said)
    assert re.search(
        rf"^error: {WHO.format(rank)} ended at step 7 while training by ZeroDivisionError: by zero; "
        r"its traceback is above: the same command goes on from the last checkpoint$",
        said,
        re.MULTILINE,
    ), said


def launch_what_is_killed_at_once() -> None:
    vars(launch)["_die_with"] = lambda parent: os.kill(os.getpid(), signal.SIGKILL)
    launch.launch(work_well, (), count=2, device="cpu")


def test_killed_before_it_could_speak(forked: Callable) -> None:
    run = forked(launch_what_is_killed_at_once)
    assert run.wait() == 3
    assert re.search(rf"error: {WHO.format(0)} ended by SIGKILL, perhaps out of memory", run.text)


def wait_quietly(processes: Processes) -> None:
    meet(processes)
    time.sleep(1000)


def test_no_orphans(start: Callable) -> None:
    (run,) = start(wait_quietly)
    run.wait_for("is process", times=2)
    children = pids(run)
    run.kill()
    assert all(gone(pid) for pid in children.values())


# -- signals -----------------------------------------------------------------------------------------------------------


def train_until_asked(processes: Processes) -> None:
    """As the trainer does: agree upon the signal, save, and raise."""
    signals.defer()
    meet(processes, step=3)
    while True:
        time.sleep(0.02)
        asked = max(processes.gather_objects(signals.asked()))
        if asked:
            processes.heartbeat.at("saving", 3)
            time.sleep(0.5 * (1 - processes.rank))  # the first one has more to do
            print(f"rank {processes.rank} saved", flush=True)
            raise Stopped(asked, "at step 3, which is saved")


STOPS = {
    signal.SIGUSR1: "stopped by SIGUSR1 (the job's time is nearly up) at step 3, which is saved",
    signal.SIGTERM: "stopped by SIGTERM (scancel or preemption) at step 3, which is saved",
    signal.SIGINT: "stopped by Ctrl-C at step 3, which is saved",
}


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("group", [False, True], ids=["parent", "all"])
def test_stop_of_what_we_started(start: Callable, number: signal.Signals, group: bool) -> None:
    (run,) = start(train_until_asked)
    run.wait_for("is process", times=2)
    (os.killpg if group else os.kill)(run.pid, number)
    assert run.wait() == 75
    assert run.text.count("saved\n") == 2
    assert run.text.endswith(f"\n{STOPS[number]}: the same command goes on\n")
    assert run.text.count("stopped by") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_stop_of_given_processes(start: Callable, rank: int) -> None:
    """A signal to one of them is enough; the first one, which has most to do, is not outlived."""
    first, second = started = start(train_until_asked, given=True)
    for one in started:
        one.wait_for("is process")
    os.kill(started[rank].pid, signal.SIGUSR1)
    while not second.ended():
        time.sleep(0.01)
    assert "stopped by" in first.text
    assert first.wait() == 75
    assert second.wait() == 75
    assert first.text.endswith(f"rank 0 saved\n{STOPS[signal.SIGUSR1]}: the same command goes on\n")
    assert second.text.endswith("rank 1 saved\n")


@BOTH
def test_signal_before_the_first_step(start: Callable, given: bool) -> None:
    started = start(wait_quietly, given=given)
    for one in started:
        one.wait_for("is process", times=1 if given else 2)
        os.kill(one.pid, signal.SIGUSR2)
    assert [one.wait() for one in started] == [75] * len(started)
    said = "".join(re.sub(r"rank .*\n", "", one.text) for one in started)
    assert said == "stopped by SIGUSR2 (the job's time is nearly up) before its first step: the same command goes on\n"


def ignore_the_wish(processes: Processes) -> None:
    signals.defer()
    meet(processes)
    time.sleep(1000)


@pytest.mark.parametrize("group", [False, True], ids=["parent", "all"])
def test_second_interrupt_ends_at_once(start: Callable, group: bool) -> None:
    (run,) = start(ignore_the_wish)
    run.wait_for("is process", times=2)
    send = os.killpg if group else os.kill
    send(run.pid, signal.SIGINT)
    run.wait_for("Ctrl-C: stopping; once more ends it at once")
    assert all(os.path.exists(f"/proc/{pid}") for pid in pids(run).values())
    send(run.pid, signal.SIGINT)
    assert run.wait() == 130
    assert all(gone(pid) for pid in pids(run).values())
    assert run.text.count("Ctrl-C") == 1


# -- what only a fresh interpreter shows -------------------------------------------------------------------------------

SCRIPT = """
from conf.errors import sentences
from gab.distributed.launch import launch


def work(processes):
    print("working", flush=True)
    processes.barrier()


if __name__ == "__main__":
    print("starting", flush=True)
    with sentences():
        launch(work, (), count=2, device="cpu")
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """The script above, about to start its processes, the leader of a group of processes."""
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout.readline() == "starting\n"
            while len(family(process.pid)) < 3:  # two and multiprocessing's resource tracker
                assert process.poll() is None
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def family(parent: int) -> list[int]:
    """The children of a process."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_signal_while_processes_import(script: subprocess.Popen, number: signal.Signals) -> None:
    os.killpg(script.pid, number)
    said, _ = script.communicate(timeout=300)
    assert script.returncode == (130 if number == signal.SIGINT else 75), said
    assert "stopped" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_parent_killed_while_processes_import(script: subprocess.Popen) -> None:
    children = family(script.pid)
    script.kill()
    assert all(gone(pid, seconds=300) for pid in children)
    assert "working" not in script.communicate()[0]
