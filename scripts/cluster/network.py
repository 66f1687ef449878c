"""How fast the processes exchange gradients, and how far the clocks of their nodes are apart."""

import time
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from gab.distributed.processes import Processes

Groups = dict[int, Any]  # number of processes: the group of the first so many; None where there is one alone
MB = 10**6
SIZES = {"1 MB": MB, "25 MB": 25 * MB, "350 MB": 350 * MB}  # a bucket of DDP; all gradients of ViT-B


def counts(processes: int, per_node: int) -> list[int]:
    """How many processes to try: 1, 2, 4, ..., one node, all."""
    powers = [2**power for power in range(processes.bit_length())]
    return sorted({*powers, min(per_node, processes), processes})


def make_groups(processes: Processes) -> Groups:
    """The groups of the first 1, 2, ... processes; all processes have to ask for them."""
    if processes.count == 1:
        return {1: None}
    return {k: dist.new_group(list(range(k))) for k in counts(processes.count, processes.local_count)}


def bandwidth(
    processes: Processes, groups: Groups, sizes: dict[str, int], seconds: float
) -> dict[int, dict[str, float]]:
    """Bus bandwidth (bytes/s) of an all-reduce by number of processes and size, in about `seconds` altogether.

    Bus bandwidth, 2 (k - 1) / k of the size over the time, is what a link has to carry, so that it can be compared over
    numbers of processes k. A size that would take too long, going by the one before it, is left out.
    """
    tried = [k for k in groups if k > 1]
    found: dict[int, dict[str, float]] = {k: {} for k in tried}
    for k in tried:
        share, before = seconds / len(tried) / len(sizes), 0.0
        for name, size in sizes.items():
            expected = size / before if before else 0.0
            if expected > 3 * share:
                continue
            rate = all_reduce(processes, groups[k], size, share) if processes.rank < k else 0.0
            before = processes.broadcast(rate)  # where the others wait, too
            found[k][name] = 2 * (k - 1) / k * before
    return found


def all_reduce(processes: Processes, group: Any, size: int, seconds: float) -> float:
    """Bytes a second of `size` bytes, over as many repetitions as fit into `seconds`; the same number everywhere."""
    tensor = torch.zeros(size // 4, device=processes.device)
    dist.all_reduce(tensor, group=group)  # the first one connects
    once = _timed(tensor, group, 1)
    repeats = torch.tensor(min(max(int(seconds / once), 1), 100), device=processes.device)
    dist.broadcast(repeats, src=0, group=group)
    return size * int(repeats) / _timed(tensor, group, int(repeats))


def _timed(tensor: torch.Tensor, group: Any, repeats: int) -> float:
    synchronize(tensor.device)
    start = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(tensor, group=group)
    synchronize(tensor.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocks(processes: Processes, rounds: int = 7) -> list[float]:
    """Seconds by which the clock of each process is ahead of the first one's, to some milliseconds."""
    ahead = []
    for _ in range(rounds):
        processes.barrier()  # which all leave at about the same time
        times = processes.gather_objects(time.time())
        ahead.append([own - times[0] for own in times])
    return [median(row[rank] for row in ahead) for rank in range(processes.count)]
