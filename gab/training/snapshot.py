"""The code of a queued run: a copy beside its checkpoints, so that what is edited later does not change it.

A job may wait for days and be started several times. It runs `runs/NAME/code/train.py`, with the configs and the
uncommitted changes of the moment when it was submitted.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gab.errors import UserError
from gab.tracking import provenance
from gab.training.checkpoint_store import has_checkpoint

FOLDER = "code"
LARGEST = 2**20  # bytes of a file; larger ones are no code
CODE = (".py", ".yaml", ".yml", ".sh", ".sbatch", ".toml", ".json")  # what is taken where git does not tell
NO_CODE = ("runs", "datasets", "wandb", "multirun", "dist", "__pycache__")  # folders


def take(root: Path, run: Path) -> str:
    """Copies the code and configs in `root` to `run`/code, and says in a line what it did.

    A run that has a checkpoint keeps the code that it has. Without git, files of code and config are taken, else what
    git tracks, as it is now, and untracked Python and YAML files; and, which git ignores, conf/local and compiled code.

    Raises:
        UserError: it cannot be written.
    """
    code = run / FOLDER
    if code.is_dir() and has_checkpoint(run):  # what came before one is not worth keeping the code for
        return f"{run} goes on with the code that it began with; to take the code as it is now, delete {code}"
    aside = run / f".{FOLDER}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        large = _copy(root, aside, leave_out=run.parent)
        (aside / provenance.SNAPSHOT).write_text(json.dumps(provenance.source(root / "train.py"), indent=1) + "\n")
        shutil.rmtree(code, ignore_errors=True)
        aside.rename(code)
    except OSError as error:
        raise UserError(
            f"the code cannot be copied to {code} ({error.strerror}): free space, or set run.dir to another place"
        ) from error
    left_out = f", without {', '.join(large)}, as code is smaller than {LARGEST // 2**20} MB" if large else ""
    return f"{code} holds the code and configs as they are now{left_out}"


def _copy(root: Path, target: Path, leave_out: Path) -> list[str]:
    """Copies the files and returns the names of those that are too large."""
    root, leave_out = root.resolve(), leave_out.resolve()
    runs = leave_out if leave_out not in (root, *root.parents) else target  # other runs hold code too
    large = []
    for name in sorted(set(_names(root))):
        file = root / name
        if not file.is_file() or runs in file.parents:  # deleted, a submodule; a run
            continue
        if file.stat().st_size > LARGEST:
            large.append(name)
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target / name)
    return large


def _names(root: Path) -> Iterator[str]:
    for ignored in ("conf/local/**/*.yaml", "data/__pycache__/*.nb?"):  # the latter is what numba has compiled
        yield from (str(path.relative_to(root)) for path in root.glob(ignored))
    if not provenance.tracked(root / "train.py"):
        yield from _walk(root)
        return
    yield from _listed(root, "--cached")
    others = _listed(root, "--others", "--exclude-standard")
    yield from (name for name in others if name.endswith((".py", ".yaml", ".yml")))


def _listed(root: Path, *which: str) -> list[str]:
    return (provenance.git(str(root), "ls-files", "-z", *which) or "").split("\0")[:-1]


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        inside = Path(folder)
        folders[:] = [
            name
            for name in folders
            if name not in NO_CODE and not name.startswith(".") and not (inside / name / "pyvenv.cfg").is_file()
        ]
        yield from (str((inside / name).relative_to(root)) for name in files if name.endswith(CODE))
