"""A real cluster of two nodes on this machine, started once for all tests of this folder."""

import io
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "scripts" / "slurm" / "local_cluster.sh"
PATIENCE = 600.0  # seconds for anything to happen; other work may slow this machine down several times


def await_true(what: str, condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Poll until `condition()` is true; fails with `what` when patience ends."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience:.0f} s: {what}"
        time.sleep(0.2)


@dataclass(frozen=True)
class Cluster:
    """SLURM's commands, which wait for a dead controller for long, under a time-out."""

    environment: dict[str, str]

    def call(self, *command: str, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def python(self, script: str, *words: str) -> SimpleNamespace:
        """`python SCRIPT WORDS` in this process, which has imported all it takes already: its code, out and err."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.chdir(ROOT)
            patch.setattr(sys, "argv", [script, *words])
            try:
                runpy.run_path(str(ROOT / script), run_name="__main__")
            except SystemExit as ended:
                code = ended.code
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    def show(self, job: str) -> dict[str, str]:
        """What the controller knows of a job or an array member."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def start_again(self, job: str) -> None:
        """When the job is queued again, start it, which would otherwise take SLURM two minutes."""
        await_true(f"job {job} is queued again", lambda: self.show(job).get("Restarts") == "1")
        await_true(f"job {job} has left its node", lambda: self.state(job) == "PENDING")
        time.sleep(2)  # in the second of its end, the node would still refuse it: "Job credential revoked"
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")

    def await_end(self, *jobs: str) -> None:
        """Until none of the jobs is queued or running."""
        await_true(
            f"the end of jobs {jobs}",
            lambda: not any(self.state(job) in ("PENDING", "RUNNING", "COMPLETING") for job in jobs),
        )


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if not all(
        shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")
    ):
        pytest.skip("SLURM is not installed: run `scripts/slurm/local_cluster.sh install` as root")
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp") as folder:  # short: sockets lie in it
        subprocess.run([CLUSTER, "start", folder], check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
        try:
            own = {"SLURM_CONF": f"{folder}/slurm.conf", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
            yield Cluster({**os.environ, **own})
        finally:
            subprocess.run([CLUSTER, "stop", folder], check=True, timeout=PATIENCE)
