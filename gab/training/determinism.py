"""`run.deterministic=true`: the same bits every time on a GPU too, at the price of speed."""

import os

import torch


def make_deterministic(wanted: bool) -> None:
    """Let PyTorch choose algorithms that give the same bits in every run, or (False) the fastest ones again."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    torch.use_deterministic_algorithms(wanted)
