"""Where a run comes from: the code's git commit and uncommitted changes, package versions, hardware, command line."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gab.training.checkpoint import writing

FILE, DIFF = "provenance.json", "uncommitted.diff"
SNAPSHOT = "snapshot.json"  # at the top of a copy of the code: what `source` said of the original


def save(folder: Path) -> dict[str, Any]:
    """Adds this start to `provenance.json` in `folder`, a list with one entry per start, and returns the new one.

    Uncommitted changes go to `uncommitted.diff` beside it (`uncommitted_2.diff` for the second start, and so on); the
    entry names the file. Call it in the process that trains, as it asks CUDA for its devices.

    Raises:
        UserError: the disk does not take them.
    """
    path = folder / FILE
    starts = json.loads(path.read_text()) if path.exists() else []
    code = source(Path(__file__))
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "commit": code["commit"],
        "untracked": code["untracked"],
        "uncommitted": None,
        "hardware": hardware(),
        "python": platform.python_version(),
        "packages": packages(),
    }
    if code["diff"]:
        name = DIFF if not starts else f"{Path(DIFF).stem}_{len(starts) + 1}.diff"
        with writing(folder / name):
            (folder / name).write_text(code["diff"])
        entry["uncommitted"] = name
    with writing(path):
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps([*starts, entry], indent=2) + "\n")
        aside.replace(path)
    return entry


def source(file: Path) -> dict[str, Any]:
    """`commit`, `diff` against it and `untracked` file names of the repository that tracks `file`.

    None, an empty text and an empty list without git or a repository. A package that is installed below somebody
    else's repository is not tracked by it. A snapshot of the code (`gab.training.snapshot`) carries the answer with it.
    """
    for parent in file.resolve().parents:
        if (parent / SNAPSHOT).is_file():
            return json.loads((parent / SNAPSHOT).read_text())
        if (parent / ".git").exists():  # what lies above the repository is not ours
            break
    folder = str(file.resolve().parent)
    top = git(folder, "rev-parse", "--show-toplevel")
    if top is None or not tracked(file):
        return {"commit": None, "diff": "", "untracked": []}
    top = top.strip()
    commit = git(top, "rev-parse", "HEAD")
    return {
        "commit": commit and commit.strip(),
        "diff": git(top, "diff", "HEAD") or "",
        "untracked": (git(top, "ls-files", "--others", "--exclude-standard") or "").splitlines(),
    }


def tracked(file: Path) -> bool:
    """Whether git is there and the repository around `file` tracks it."""
    return git(str(file.resolve().parent), "ls-files", "--error-unmatch", file.name) is not None


def packages() -> dict[str, str]:
    """Version of every installed distribution, by name."""
    found = {item.metadata["Name"]: item.version for item in metadata.distributions() if item.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def hardware() -> dict[str, Any]:
    """Host, processor, cores (of the machine, and those that this process may use), memory in GiB, and GPUs."""
    gpus = [torch.cuda.get_device_properties(device) for device in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "cuda": torch.version.cuda if gpus else None,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git(folder: str, *arguments: str) -> str | None:
    """What git prints; None when it fails or is not there."""
    try:
        command = ["git", "-C", folder, *arguments]
        done = subprocess.run(command, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
