"""The examples of CONTRIBUTING.md: each file is written into a copy of the project, each command trains some steps."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.readers import digits

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^python (train\.py .*?)\n```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the files of the guide, which must be new, and the data that they are about."""
    root = tmp_path_factory.mktemp("project")
    for part in ("gab", "data", "conf"):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", "local"))
    shutil.copy(ROOT / "train.py", root)
    for name, content in FILES.items():
        with (root / name).open("x") as file:
            file.write(content)
    write_scans(root / "datasets" / "scans")
    return root


def write_scans(folder: Path) -> None:
    """scikit-learn's digits as the guide's `scans`."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        source = digits.open_split(folder, split)
        some = np.arange(0, len(source), 4)
        images = np.stack([np.asarray(source.image(i)) for i in some])
        np.savez(folder / f"{split}.npz", images=images, labels=source.labels[some], classes=source.classes)


def test_the_guide_shows_a_model_an_idea_a_data_set_and_an_experiment() -> None:
    assert {str(Path(name).parent) for name in FILES} == {
        "gab/models",
        "conf/model",
        "conf/data",
        "data/readers",
        "conf/experiment",
    }
    assert len(COMMANDS) == 6


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.sub(r"\W+", "-", command)[:40])
def test_example_trains(project: Path, command: str) -> None:
    arguments = shlex.split(command.replace("\\\n", " "))
    settings = ["debug=fast", "data.loader=torch", "run.device=cpu", "run.workers=1"]
    environment = {key: value for key, value in os.environ.items() if key != "GAB_DATA"}
    done = subprocess.run(
        [sys.executable, *arguments, *settings], cwd=project, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "after the last epoch" in done.stdout
