"""Run the same work in every process of a run: in processes that we start on this machine, or as torchrun and srun did.

However it ends, it ends for all of them: done, stopped by a signal, or by the first error, said in one sentence.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch.distributed as dist

from gab.distributed import signals
from gab.distributed.heartbeat import Heartbeat
from gab.distributed.processes import Ranks, given_ranks, join
from gab.distributed.slurm import meeting_point
from gab.distributed.verdict import Member, Report, Verdict, of_error
from gab.distributed.watch import GRACE, STOPPING, Watch
from gab.distributed.wire import connect
from gab.errors import INTERRUPTED, LOST_PROCESS, STOPPED, UserError

MEETING = timedelta(minutes=10)  # for all processes of the run to come to the meeting point
HERE = "127.0.0.1"
START: Literal["spawn"] = "spawn"  # CUDA does not survive a fork
POLL = 0.1  # seconds between two looks at the children
_launches = itertools.count()  # a sweep launches several runs in one process: each has keys of its own in the store

Work = Callable[..., None]


def launch(work: Work, args: tuple[Any, ...], *, count: int, device: str) -> None:
    """Run `work(processes, *args)` in every process of the run; returns when all have ended.

    A single process is this one. Under torchrun and srun, all processes but the first end in here if not all is well.

    Raises:
        UserError: what any of the processes found wrong.
        Stopped: a signal asked for it (`gab.distributed.signals`), and the work has stopped.
        LostProcess: a process died or hung, or ended by an exception, whose traceback it has printed.
    """
    given = given_ranks() or Ranks()
    if given.count > 1:
        _work_as_given(given, device, work, args)
    elif count == 1:
        with signals.listening():
            work(join(given, device), *args)
    else:
        _work_in_children(count, device, work, args)


def _take_part(
    watch: Watch, ranks: Ranks, device: str, store: dist.Store, work: Work, args: tuple[Any, ...]
) -> Verdict | None:
    """What a process of several does; returns how it ends, or None if all is done."""
    watch.start()
    try:
        work(join(ranks, device, store, watch.heartbeat), *args)
    except BaseException as error:
        return watch.ended_by(error)
    watch.heartbeat.at("closing")
    dist.destroy_process_group()
    watch.close()
    return None


def _leave(code: int) -> None:
    """End this process. The interpreter's own end would wait for a process group that has lost members."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# -- processes that torchrun or srun has started -----------------------------------------------------------------------


def _work_as_given(ranks: Ranks, device: str, work: Work, args: tuple[Any, ...]) -> None:
    def say(verdict: Verdict) -> None:
        if verdict.speaker == ranks.rank:
            print(f"error: {verdict.sentence}", file=sys.stderr, flush=True)

    with signals.listening(quiet=ranks.rank > 0):
        store = _meet(ranks)
        watch = Watch(Heartbeat(), ranks.rank, *connect(ranks.rank, ranks.count, store, os.environ["MASTER_ADDR"]), say)
        ending = _take_part(watch, ranks, device, store, work, args)
        if ending is None:
            return
        if ending.code == STOPPED and dist.is_initialized():
            dist.destroy_process_group()
        if ranks.rank == 0 and ending.code in (STOPPED, INTERRUPTED):
            raise ending.error()
        if ending.code == STOPPED:
            watch.outlast_first()
        _leave(ending.code)


def _meet(ranks: Ranks) -> dist.Store:
    """The store that all processes of the run share, at the meeting point."""
    meeting_point()
    try:
        store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.count, timeout=MEETING))
    except dist.DistError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"process {ranks.rank} of {ranks.count} gave up waiting at {place} for the other processes: "
            f"look at the logs of those that did not arrive ({str(error).splitlines()[0]})"
        ) from error
    return dist.PrefixStore(f"launch {next(_launches)}", store)


# -- processes that we start -------------------------------------------------------------------------------------------


@dataclass
class _Child:
    """A process that we have started, and what it says about its end."""

    member: Member
    process: BaseProcess
    inbox: Connection

    def endings(self) -> list[Verdict]:
        """What has come since the last look. The line's end is no sign: a loader's worker may hold it open."""
        with contextlib.suppress(EOFError, OSError):
            return [self.inbox.recv()] if self.inbox.poll() else []
        return []


def _work_in_children(count: int, device: str, work: Work, args: tuple[Any, ...]) -> None:
    processes: list[BaseProcess] = []
    with socket.create_server((HERE, 0)) as server, signals.listening(children=processes):
        port = server.getsockname()[1]
        try:
            children = _start(processes, count, (device, port, work, args))
            # The store comes last: it has a thread, and a child that is forked, as in tests, would keep for ever what
            # that thread holds. It serves until this function returns.
            _store = dist.TCPStore(HERE, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())
            endings = _supervise(children)
        finally:
            for process in processes:
                process.kill()
                process.join()
    if endings:
        raise endings[0].error()


def _start(processes: list[BaseProcess], count: int, job: tuple[Any, ...]) -> list[_Child]:
    """Start the children, into `processes`."""
    context = get_context(START)
    with signals.blocked():
        resource_tracker.ensure_running()  # else the first child would start it, and unblock signals (Python 3.11)
    children = []
    with signals.blocked():
        for rank in range(count):
            inbox, outbox = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(os.getpid(), outbox, Ranks(rank, count, rank, count), *job))
            process.start()
            outbox.close()
            processes.append(process)
            children.append(_Child(Member(rank, count, socket.gethostname(), process.pid or 0), process, inbox))
    return children


def _supervise(children: list[_Child]) -> list[Verdict]:
    """Wait for the end of all; returns how they ended, the first that said so first, or nothing if all is well.

    The heartbeat has them end together. What is left after its time is killed.
    """
    endings: list[Verdict] = []
    deadline = float("inf")
    while any(child.process.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(POLL)
        endings += [ending for child in children for ending in child.endings()]
        if deadline == float("inf") and any(child.process.exitcode for child in children):
            stopping = any(ending.code == STOPPED for ending in endings)
            deadline = time.monotonic() + (STOPPING if stopping else 1.5 * GRACE)
    endings += [ending for child in children for ending in child.endings()]
    return endings or [_of_exit(child) for child in children if child.process.exitcode]


def _of_exit(child: _Child) -> Verdict:
    """The verdict on a child that could not say anything."""
    code = child.process.exitcode or 0
    how = f"with exit code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
    memory = ", perhaps out of memory (see `dmesg`)" if code == -signal.SIGKILL else ""
    return Verdict(LOST_PROCESS, f"{child.member} ended {how}{memory}: start the same command again")


def _child(
    parent: int,
    outbox: Connection,
    ranks: Ranks,
    device: str,
    port: int,
    work: Work,
    args: tuple[Any, ...],
) -> None:
    """What a process that we have started does."""
    _die_with(parent)
    lock = threading.Lock()

    def tell(ending: Verdict) -> None:
        with lock, contextlib.suppress(OSError):
            outbox.send(ending)

    try:
        signals.listen(quiet=True)
        store = dist.TCPStore(HERE, port, is_master=False, timeout=MEETING)
        watch = Watch(Heartbeat(), ranks.rank, *connect(ranks.rank, ranks.count, store, HERE), tell)
    except BaseException as error:
        ending: Verdict | None = of_error(error, Member(ranks.rank, ranks.count, HERE, os.getpid()), Report())
    else:
        ending = _take_part(watch, ranks, device, store, work, args)
    if ending:
        tell(ending)
        _leave(ending.code)


def _die_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies, however: nobody else would."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(LOST_PROCESS)
