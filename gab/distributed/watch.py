"""The processes of a run watch over one another, so that none waits for one that will never come.

A thread in every process tells the first one, once a second, where its main thread is. The first one judges: a line
that ends without goodbye is a process that was killed, silence is one that was stopped or whose machine is gone, no
progress is one that hangs; an error is announced by who has it. The verdict goes to all, and all end, also where the
main thread waits in a collective that nobody will complete. If the first one is lost, the others see it by themselves.
"""

import os
import re
import selectors
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace

import torch.distributed as dist

from gab.distributed.heartbeat import Heartbeat, Progress, waits_for_others
from gab.distributed.verdict import Member, Report, Verdict, hung, killed, of_error, silent
from gab.distributed.wire import Wire
from gab.errors import LOST_PROCESS, STOPPED, USER_ERROR

INTERVAL = 1.0  # seconds between two reports
SILENCE = 30.0  # seconds without a report
GRACE = 10.0  # seconds for the main thread to end by itself, once the verdict is there
STOPPING = 900.0  # the same, where the run was asked to stop: the last checkpoint may be on its way


class Watch(threading.Thread):
    """The thread of one process.

    Args:
        heartbeat: told by the main thread.
        rank: of this process.
        members: all processes.
        wires: lines to the processes that this one hears of, by rank: all others, or the first.
        say: called once, with the verdict, in every process; not with one that the main threads bring themselves.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        rank: int,
        members: list[Member],
        wires: dict[int, Wire],
        say: Callable[[Verdict], None],
    ):
        super().__init__(name="heartbeat", daemon=True)
        self.heartbeat, self.rank, self.members, self.wires, self.say = heartbeat, rank, members, wires, say
        self.progress, self.reports = Progress(heartbeat), {number: Report() for number in range(len(members))}
        self.clock = 0.0  # seconds of our own life: it stands while this process is stopped
        self.heard, self.deadline = dict.fromkeys(wires, 0.0), float("inf")
        self.verdict: Verdict | None = None
        self.decided, self._deciding = threading.Event(), threading.Lock()
        self.leaving, self.left = False, set[int]()  # whether this process has said goodbye, and which others have

    # -- called by the main thread -------------------------------------------------------------------------------------

    def ended_by(self, error: BaseException) -> Verdict:
        """The main thread is about to end by `error`: announce it, unless it only follows from another's end."""
        ending = of_error(error, self.members[self.rank], self.reports[self.rank])
        if ending.code == LOST_PROCESS:
            if _follows(error):
                self.decided.wait(GRACE)
            if self.verdict:
                return self.verdict
            traceback.print_exception(error)
        if self.rank == 0:
            self._decide(ending)
        elif not self.wires[0].send(end=asdict(ending)):
            self._decide(replace(ending, speaker=self.rank))
        return ending

    def close(self) -> None:
        """The work is done. The first process stays until all others have said so too."""
        self.leaving = True
        for wire in self.wires.values():
            wire.send(bye=True)
        self.join()
        for wire in self.wires.values():
            wire.close()

    def outlast_first(self) -> None:
        """Return when the first process has ended: an exit code before that would have srun or torchrun end it."""
        self.join(STOPPING)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, wire in self.wires.items():
                selector.register(wire.socket, selectors.EVENT_READ, rank)
            now, due = time.monotonic(), 0.0
            while not self._over():
                for key, _ in selector.select(INTERVAL):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                before, now = now, time.monotonic()
                elapsed = min(now - before, 2 * INTERVAL)
                self.clock += elapsed
                self.reports[self.rank] = report = self.progress.tick(elapsed)
                if self.clock >= due:
                    due = self.clock + INTERVAL
                    for wire in self.wires.values():
                        wire.send(report=asdict(report))
                if not self.verdict:
                    self._judge()

    def _over(self) -> bool:
        """Whether there is nobody left to watch. Ends the process where its main thread did not, in time."""
        if self.verdict and self.clock > self.deadline:
            os._exit(self.verdict.code)
        if self.leaving and self.rank > 0:
            return True
        alone = all(wire.closed or rank in self.left for rank, wire in self.wires.items())
        return alone and (self.leaving or (self.verdict is not None and self.verdict.code == STOPPED))

    def _hear(self, rank: int) -> bool:
        """Take in what has come from `rank`; whether more can come."""
        wire = self.wires[rank]
        self.heard[rank] = self.clock
        for message in wire.receive():
            if "report" in message:
                self.reports[rank] = Report(**message["report"])
            if "end" in message:
                self._decide(Verdict(**message["end"]))
            if "bye" in message:
                self.left.add(rank)
        return not wire.closed

    def _judge(self) -> None:
        """Look for a process that is lost, or for all of them standing still."""
        for rank, wire in self.wires.items():
            if rank in self.left:
                continue
            member, report, quiet = self.members[rank], self.reports[rank], self.clock - self.heard[rank]
            if wire.closed:
                self._decide(replace(killed(member, report), speaker=1 if rank == 0 else 0))
            elif quiet > SILENCE:
                self._decide(replace(silent(member, report, quiet), speaker=self._elsewhere() if rank == 0 else 0))
        if self.rank == 0:
            left = self.left | {0} if self.leaving else self.left
            watched = {rank: report for rank, report in self.reports.items() if rank not in left}
            verdict = hung(self.members, watched) if watched else None
            if verdict:
                self._decide(verdict)

    def _elsewhere(self) -> int:
        """Who speaks where the first machine may be gone: the first process of another one, if there is any."""
        host = self.members[0].host
        return next((member.rank for member in self.members[1:] if member.host != host), 1)

    def _decide(self, verdict: Verdict) -> None:
        with self._deciding:
            if self.verdict:
                return
            if self.rank == 0:
                for wire in self.wires.values():
                    wire.send(end=asdict(verdict))
            if verdict.code in (USER_ERROR, LOST_PROCESS):
                self.say(verdict)
            self.deadline = self.clock + (STOPPING if verdict.code == STOPPED else GRACE)
            self.verdict = verdict  # last: the main thread may end the process as soon as it sees it
            self.decided.set()


def _follows(error: BaseException) -> bool:
    """Whether an error may come from the end of another process: it was raised where one waits for others."""
    if isinstance(error, dist.DistError) or re.search(r"gloo|NCCL|Connection (closed|reset)", str(error)):
        return True
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and waits_for_others(trace.tb_frame, trace.tb_lineno)
