"""What one process sees of the node that it runs on: software, cores, GPU, and the places that fill up."""

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch

from data.batches import ffcv_loader
from data.errors import DataError

PACKAGES = ("numba", "timm", "hydra-core", "wandb")
DRIVER = Path("/proc/driver/nvidia/version")
SHARED_MEMORY = Path("/dev/shm")
MISSING = "missing"
WANDB = "https://api.wandb.ai"


@dataclass(frozen=True)
class Seen:
    """One process and its node; sizes in bytes."""

    host: str
    versions: dict[str, str]
    gpu: str  # name of the GPU that it computes on; empty on the CPU
    gpu_id: str  # which tells two GPUs of a name apart
    gpus: int  # that PyTorch sees
    cores: frozenset[int]  # that the process may use
    machine_cores: int
    threads: int  # of torch
    workers: int  # of the loader
    shared_memory: int | None  # free in /dev/shm
    home: str  # why nothing can be written there; empty if it can


def look(device: torch.device, workers: int) -> Seen:
    """What this process, which computes on `device` and loads with `workers`, sees."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Seen(
        host=socket.gethostname().split(".")[0],
        versions=versions(),
        gpu=properties.name if properties else "",
        gpu_id=str(properties.uuid) if properties else "",
        gpus=torch.cuda.device_count(),
        cores=frozenset(os.sched_getaffinity(0)),
        machine_cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        workers=workers,
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        home=cannot_write(Path.home()),
    )


def versions() -> dict[str, str]:
    """Versions of everything that has to be the same on all nodes."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    if DRIVER.is_file() and (driver := re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text())):
        found["driver"] = driver[0]
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = MISSING
    return found | {"ffcv": ffcv_version()}


def ffcv_version() -> str:
    """FFCV's version where it can be imported, which takes system libraries."""
    try:
        with ffcv_loader():
            return importlib.metadata.version("ffcv")
    except DataError:
        return MISSING


def cannot_write(folder: Path) -> str:
    """Why a megabyte cannot be written in `folder`; empty if it can. A quota shows only so."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def wandb_url() -> str:
    """The server that W&B's client talks to; its default has changed between versions."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    try:
        from wandb import Settings
    except ImportError:
        return WANDB
    return Settings().base_url


def reaches(url: str, patience: float = 3.0) -> bool:
    """Whether a connection to the host of `url` can be made within `patience` seconds, its name looked up."""
    place = urlparse(url)
    reached = threading.Event()

    def connect() -> None:
        port = place.port or (80 if place.scheme == "http" else 443)
        try:
            with socket.create_connection((place.hostname or "", port), timeout=patience):
                reached.set()
        except OSError:
            return

    attempt = threading.Thread(target=connect, daemon=True)  # a name server that hangs knows no time-out
    attempt.start()
    attempt.join(patience)
    return reached.is_set()
