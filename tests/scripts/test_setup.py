"""scripts/setup.sh where FFCV cannot be built, with stand-ins for the tools that it calls."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts" / "setup.sh"
STAND_INS = {
    "python3": """case "$*" in *sys.executable*) echo "$0" ;; esac""",
    "pkg-config": "",
    "g++": "",
    "uv": """echo "uv $*" >>calls
        case "$1 $2" in
        "venv "*) mkdir -p .venv/bin && cp "$(dirname "$0")/python3" .venv/bin/python ;;
        "pip install") if grep -q ffcv; then echo "fatal error: opencv2/core.hpp: No such file" >&2 && exit 1; fi ;;
        esac""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with setup.sh and what it reads; the stand-ins are in its bin/."""
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(SETUP, tmp_path / "scripts")
    (tmp_path / "requirements.lock").write_text("numpy==2.3.0\nffcv==1.0.2\n")
    (tmp_path / "pyproject.toml").touch()
    for name, body in STAND_INS.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)
    return tmp_path


def test_a_failed_build_of_ffcv_is_remembered_with_its_log(project: Path) -> None:
    environment = {"PATH": f"{project}/bin:{os.environ['PATH']}", "PYTHON": f"{project}/bin/python3", "CXX": "g++"}

    def setup() -> str:
        done = subprocess.run(
            [project / "scripts" / "setup.sh"], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    first = setup()
    assert "fatal error: opencv2/core.hpp" in first
    calls = (project / "calls").read_text()
    second = setup()
    assert (project / "calls").read_text() == calls, "nothing has changed, so nothing is tried again"
    for told in (first, second):
        assert f"FFCV could not be built ({project}/.venv/ffcv.log says why)" in told
        assert "apt-get" not in told
    assert "fatal error: opencv2/core.hpp" in (project / ".venv" / "ffcv.log").read_text()
