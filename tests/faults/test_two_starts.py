"""Two starts of one run at once, by the command: the second is refused, the first does not notice."""

import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts.same_bits import differences
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_second_is_refused(tiny_command: list[str], undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *tiny_command, f"run.dir={tmp_path}", "run.name=run"]
    folder = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def start() -> subprocess.Popen:
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start()
    while not list(folder.glob("lock.*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it is still there when the second one comes
    second = start()
    _, error = second.communicate(timeout=600)
    assert second.returncode == 2, error
    host, user = socket.gethostname(), getpass.getuser()
    assert error.strip().splitlines()[-1] == (
        f"error: {folder} is being trained by process {first.pid} on host {host} (user {user}), which is alive: wait "
        f"for it, end it (kill {first.pid} on {host}), or take another run.name"
    )
    first.send_signal(signal.SIGCONT)
    output, error = first.communicate(timeout=600)
    assert first.returncode == 0, output + error
    assert differences(undisturbed, folder) == []
    assert not list(folder.glob("lock.*"))
