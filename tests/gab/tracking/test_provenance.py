import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gab.errors import UserError
from gab.tracking import provenance


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "code.py").write_text("x = 1\n")

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first", "--no-verify", "--no-gpg-sign")
    return folder


def test_commit_and_changes(repository: Path) -> None:
    code = repository / "package" / "code.py"
    clean = provenance.source(code)
    assert len(clean["commit"]) == 40
    assert clean["diff"] == ""
    assert clean["untracked"] == []
    code.write_text("x = 'σ'\n")
    (repository / "new.py").write_text("")
    dirty = provenance.source(code)
    assert dirty["commit"] == clean["commit"]
    assert "+x = 'σ'" in dirty["diff"]
    assert dirty["untracked"] == ["new.py"]


def test_an_installed_copy_is_not_of_the_repository_around_it(repository: Path) -> None:
    (repository / "site-packages").mkdir()
    (repository / "site-packages" / "code.py").write_text("")
    assert provenance.source(repository / "site-packages" / "code.py")["commit"] is None


def test_what_lies_above_the_repository_is_no_snapshot(repository: Path) -> None:
    (repository.parent / provenance.SNAPSHOT).write_text("{}")
    assert provenance.source(repository / "package" / "code.py")["commit"]


def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "source", lambda _: {"commit": None, "diff": "+" * 2000, "untracked": []})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, file in ((1000, "uncommitted.diff"), (2000, "provenance.json")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(UserError, match=rf"cannot write {tmp_path}/{file} \(File too large\): make room"):
                provenance.save(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "provenance.json").exists()


def test_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = provenance.source(repository / "package" / "code.py")
    assert found == {"commit": None, "diff": "", "untracked": []}


def test_each_start_is_kept(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = repository / "package" / "code.py"
    monkeypatch.setattr(provenance, "__file__", str(code))
    entries = []
    for text in ("x = 1\n", "x = 2\n", "x = 3\n"):
        code.write_text(text)
        entries.append(provenance.save(tmp_path))
    assert json.loads((tmp_path / "provenance.json").read_text()) == entries
    assert [entry["uncommitted"] for entry in entries] == [None, "uncommitted_2.diff", "uncommitted_3.diff"]
    assert "+x = 2" in (tmp_path / "uncommitted_2.diff").read_text()
    assert entries[0]["packages"]["pytest"] == pytest.__version__
    assert entries[0]["command"] == shlex.join(sys.orig_argv)
    assert entries[0]["hardware"]["cores"] >= entries[0]["hardware"]["usable_cores"] >= 1


def test_the_first_start_with_changes(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = repository / "package" / "code.py"
    code.write_text("x = 2\n")
    monkeypatch.setattr(provenance, "__file__", str(code))
    assert provenance.save(tmp_path)["uncommitted"] == "uncommitted.diff"
    assert "+x = 2" in (tmp_path / "uncommitted.diff").read_text()
