"""`run.profile=true`: PyTorch's profiler around a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@contextmanager
def profiled(folder: Path | None) -> Iterator[None]:
    """Profile what happens inside: a table to the terminal, `trace.json` into the folder. None: do nothing."""
    if folder is None:
        yield
        return
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        yield
    print(profiler.key_averages().table(sort_by=f"self_{'cuda' if cuda else 'cpu'}_time_total", row_limit=20))
    profiler.export_chrome_trace(str(folder / "trace.json"))
    print(f"trace: {folder / 'trace.json'} (open it in chrome://tracing or Perfetto)")
