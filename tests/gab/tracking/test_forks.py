"""A fork while another thread starts a program: that thread goes on although the fork lives."""

import multiprocessing
import subprocess
import threading
import time

import pytest

from gab.tracking.forks import keep_apart

FOREVER = 600.0  # seconds


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_fork_holds_up_no_program(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_apart()
    starting, answers = threading.Event(), []
    start = subprocess._fork_exec

    def slow(*arguments: object) -> int:
        if moment == "after":
            pid = start(*arguments)
        starting.set()
        time.sleep(1.0)
        return start(*arguments) if moment == "before" else pid

    def ask() -> None:
        answers.append(subprocess.run(["echo", "yes"], capture_output=True, text=True).stdout)

    monkeypatch.setattr(subprocess, "_fork_exec", slow)
    thread = threading.Thread(target=ask, daemon=True)
    fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(FOREVER,))
    thread.start()
    assert starting.wait(60)
    fork.start()
    try:
        thread.join(60)
        assert answers == ["yes\n"]
    finally:
        fork.kill()
        fork.join()


def test_a_fork_starts_programs() -> None:
    keep_apart()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(subprocess.check_output, (["echo", "yes"],)).get(60) == b"yes\n"
