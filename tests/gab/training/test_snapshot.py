import json
import subprocess
from pathlib import Path

import pytest

from gab.errors import UserError
from gab.tracking import provenance
from gab.training import snapshot

COMPILED = "data/__pycache__/resample.resize_crop-34.py311.nbi"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project without git: code, configs, and what is neither."""
    root = tmp_path / "project"
    for name in ("train.py", "gab/model.py", "conf/train.yaml", "conf/local/default.yaml", "scripts/train.sbatch"):
        write(root / name)
    write(root / COMPILED)
    for name in ("images/cat.jpg", ".venv/lib/module.py", "env/pyvenv.cfg", "env/module.py", "runs/old/code/train.py"):
        write(root / name)
    return root


def write(file: Path, text: str = "x") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", root, *who, *arguments], check=True, capture_output=True)


def commit(root: Path) -> None:
    write(root / ".gitignore", "/.venv\n/env\n/runs\n/conf/local\n/ignored.py\n__pycache__/\n")
    git(root, "init")
    git(root, "add", "train.py", "gab", "conf", "scripts", ".gitignore")
    git(root, "commit", "-m", "first", "--no-verify", "--no-gpg-sign")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


CODE = {
    "train.py",
    "gab/model.py",
    "conf/train.yaml",
    "conf/local/default.yaml",
    "scripts/train.sbatch",
    COMPILED,
    "snapshot.json",
}


def test_without_git_code_and_configs_are_taken(project: Path) -> None:
    run = project / "runs" / "new"
    assert "as they are now" in snapshot.take(project, run)
    assert files(run / "code") == CODE
    assert provenance.source(run / "code" / "train.py")["commit"] is None


def test_with_git_changes_and_new_code_are_taken(project: Path) -> None:
    commit(project)
    write(project / "gab" / "model.py", "changed")
    (project / "conf" / "train.yaml").unlink()
    for name in ("new.py", "conf/new.yaml", "note.txt", "ignored.py", "out/other/code/train.py"):
        write(project / name)
    run = project / "out" / "run"  # which git does not ignore
    snapshot.take(project, run)
    assert files(run / "code") == CODE - {"conf/train.yaml"} | {".gitignore", "new.py", "conf/new.yaml"}
    assert (run / "code" / "gab" / "model.py").read_text() == "changed"


def test_a_snapshot_knows_commit_and_changes(project: Path) -> None:
    commit(project)
    write(project / "gab" / "model.py", "changed")
    snapshot.take(project, project / "runs" / "new")
    write(project / "gab" / "model.py", "changed again")
    found = provenance.source(project / "runs" / "new" / "code" / "gab" / "model.py")
    assert len(found["commit"]) == 40
    assert "+changed" in found["diff"]
    assert "+changed again" not in found["diff"]


def test_a_run_keeps_the_code_that_it_began_with(project: Path) -> None:
    run = project / "runs" / "new"
    snapshot.take(project, run)
    write(project / "train.py", "second")
    snapshot.take(project, run)  # has not begun: nothing is lost
    assert (run / "code" / "train.py").read_text() == "second"
    write(run / "checkpoints" / "last.pt")
    write(project / "train.py", "third")
    said = snapshot.take(project, run)
    assert f"delete {run}/code" in said
    assert (run / "code" / "train.py").read_text() == "second"


def test_large_files_are_left_out_and_named(project: Path) -> None:
    write(project / "weights.json", "0" * (snapshot.LARGEST + 1))
    assert "without weights.json" in snapshot.take(project, project / "runs" / "new")
    assert "weights.json" not in files(project / "runs" / "new" / "code")


def test_a_copy_that_was_cut_short_is_none(project: Path) -> None:
    run = project / "runs" / "new"
    write(run / ".code.part" / "rest.py")
    snapshot.take(project, run)
    assert files(run) == {f"code/{name}" for name in CODE}


def test_a_folder_that_cannot_be_written_is_named(project: Path) -> None:
    write(project / "runs" / "file")
    with pytest.raises(UserError, match="set run.dir to another place"):
        snapshot.take(project, project / "runs" / "file" / "run")


def test_snapshot_json_is_what_source_said(project: Path) -> None:
    commit(project)
    snapshot.take(project, project / "runs" / "new")
    kept = json.loads((project / "runs" / "new" / "code" / "snapshot.json").read_text())
    assert kept == provenance.source(project / "train.py")
