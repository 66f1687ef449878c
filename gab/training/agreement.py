"""What one process wishes becomes what all of them know, at the same step."""

import torch
import torch.distributed as dist

from gab.distributed.processes import Processes


class Agreement:
    """The largest wish of any process, known to all of them one call later.

    All processes call it equally often, such as once a step. The answer belongs to the call before, so nobody waits
    for anybody, and the device is not asked: wishes travel through the host's own process group.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def __call__(self, *wishes: int) -> tuple[int, ...]:
        """Give the wishes of this call; returns those agreed upon: 0 at the first call, the same length always."""
        if self.processes.count == 1:
            return wishes
        agreed = self.settle() or (0,) * len(wishes)
        box = torch.tensor(wishes)
        work = dist.all_reduce(box, dist.ReduceOp.MAX, group=self.processes.control, async_op=True)
        assert work is not None
        self._pending = box, work
        return agreed

    def settle(self) -> tuple[int, ...] | None:
        """Wait for the answer that is on its way, if there is one."""
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        box, work = pending
        work.wait()
        return tuple(box.tolist())
