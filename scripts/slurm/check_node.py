"""Whether this node can do its part of a job: `check_node.py train|eval OVERRIDES`, by train.sbatch on every node."""

import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the code of this folder, a snapshot, and none that is installed

import torch
from hydra import compose, initialize_config_dir

from conf.errors import sentences
from conf.schema import data_for, typed
from data import files
from data.config import DataConfig
from data.splits import splits
from gab.errors import UserError

NODE = f"node {os.environ.get('SLURMD_NODENAME', os.uname().nodename)}"


def main(what: str, overrides: list[str]) -> None:
    """Look at GPUs, data and local disk; raises UserError that names this node."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(what, overrides)
    if what == "eval":  # without data=NAME on the images of its checkpoint, whose run has looked for them
        cfg.data = data_for(cfg.data, None)
    config = typed(cfg)
    if config.run.device != "cpu":
        check_gpus(int(os.environ.get("SLURM_GPUS_ON_NODE", 0)), config.run.device)
    if config.data is not None:
        check_data(config.data)
        check_stage(config.data)
    print(f"{NODE}: Python {sys.version.split()[0]}, PyTorch {torch.__version__}, {torch.cuda.device_count()} GPUs")


def check_gpus(given: int, device: str) -> None:
    """What SLURM gives must be what PyTorch sees, and used by a process each where there are several nodes."""
    seen = torch.cuda.device_count()
    if seen < given or (device == "cuda" and not seen):
        raise UserError(
            f"{NODE}: SLURM gives the job {given} GPUs there, but PyTorch sees {seen}: see `nvidia-smi` there, "
            f"leave it out by --exclude={NODE.split()[-1]}, or set run.device=cpu"
        )
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    tasks = int(os.environ.get("SLURM_NTASKS_PER_NODE", 1))
    if nodes > 1 and given > tasks:
        raise UserError(f"{given} GPUs on each of {nodes} nodes, but {tasks} processes: add --ntasks-per-node={given}")


def check_data(data: DataConfig) -> None:
    """The folder of the data set."""
    root = Path(data.root)
    if not data.write_if_missing and not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):
        raise UserError(
            f"{NODE} cannot read {root}: put the data where all nodes see it, or set data.root to that place"
        )


def check_stage(data: DataConfig) -> None:
    """Local disk for a copy of the data, which other jobs may have made already."""
    if not data.stage or data.loader != "ffcv":
        return
    stage, missing = Path(data.stage).expanduser(), 0
    for split in splits(data):
        path = files.beton(data, split)
        if path.is_file() and not (stage / files.load_sidecar(path).sha256[:16] / path.name).is_file():
            missing += path.stat().st_size
    try:
        stage.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(stage).free
    except OSError as error:
        raise UserError(f"{NODE} cannot write to data.stage={stage} ({error.strerror}): take another folder") from error
    if free < missing:
        raise UserError(
            f"{NODE} has {free / 1e9:.1f} GB free in data.stage={stage}, but the data takes {missing / 1e9:.1f} GB: "
            "make room, ask for more local disk, or read it from where it is by data.stage=null"
        )


if __name__ == "__main__":
    with sentences():
        main(sys.argv[1], sys.argv[2:])
