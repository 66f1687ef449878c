"""How the run ends for all of its processes, when one of them ends it: who is to blame, in a sentence for people."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gab.errors import INTERRUPTED, LOST_PROCESS, STOPPED, USER_ERROR, LostProcess, Stopped, UserError


@dataclass(frozen=True)
class Member:
    """A process of the run, as people find it."""

    rank: int
    count: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.rank} of {self.count} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Report:
    """What a process tells about its main thread.

    Attributes:
        step: that it trains or has trained last; None before the first.
        late: seconds without progress, where they are more than the phase may take; else 0.
        waiting: whether it is late because it waits for the other processes, as far as one can see.
        place: the line of the program where it is, if it is late.
    """

    phase: str = "starting"
    step: int | None = None
    late: float = 0.0
    waiting: bool = False
    place: str = ""

    def __str__(self) -> str:
        return f"{'' if self.step is None else f'at step {self.step:,} '}while {self.phase}"

    @property
    def remedy(self) -> str:
        if self.step is None:
            return "start the same command again"
        return "the same command goes on from the last checkpoint"


@dataclass(frozen=True)
class Verdict:
    """The end of the run.

    Attributes:
        code: exit code of every process.
        sentence: what happened and what to do.
        signal: that asked for the stop, if it is one.
        speaker: rank of the process that says the sentence.
    """

    code: int
    sentence: str
    signal: int = 0
    speaker: int = 0

    def error(self) -> BaseException:
        """The verdict as the exception that a command ends with."""
        if self.code == STOPPED:
            return Stopped(self.signal, self.sentence)
        if self.code == INTERRUPTED:
            return KeyboardInterrupt()
        return UserError(self.sentence) if self.code == USER_ERROR else LostProcess(self.sentence)


def of_error(error: BaseException, member: Member, report: Report) -> Verdict:
    """What an exception of `member` means for all."""
    if isinstance(error, Stopped):
        return Verdict(STOPPED, error.where, error.signal)
    if isinstance(error, KeyboardInterrupt):
        return Verdict(INTERRUPTED, "", signal.SIGINT)
    if is_user_error(error):
        return Verdict(USER_ERROR, str(error))
    first_line = str(error).strip().partition("\n")[0][:200]
    what = f"{type(error).__name__}: {first_line}".rstrip(": ")
    return Verdict(LOST_PROCESS, f"{member} ended {report} by {what}; its traceback is above: {report.remedy}")


def is_user_error(error: BaseException) -> bool:
    """Whether the error is for people: one of either wing's `errors` module."""
    return isinstance(error, ValueError) and type(error).__module__ in ("gab.errors", "data.errors")


def killed(member: Member, report: Report) -> Verdict:
    """The verdict for a `member` that has gone without a word."""
    job = os.environ.get("SLURM_JOB_ID")
    look = f"`dmesg` on {member.host}" + (f", `sacct -j {job} --format=JobID,State,MaxRSS`" if job else "")
    why = f"perhaps out of memory (see {look})"
    return Verdict(LOST_PROCESS, f"{member} was killed {report}, {why}: {report.remedy}")


def silent(member: Member, report: Report, seconds: float) -> Verdict:
    """`member` is still connected, but has not been heard of for `seconds`."""
    why = f"it is stopped, or its machine is gone (see `ping {member.host}`)"
    return Verdict(LOST_PROCESS, f"{member} has said nothing for {seconds:.0f} s {report}, {why}: {report.remedy}")


def hung(members: Sequence[Member], reports: Mapping[int, Report]) -> Verdict | None:
    """Whether the run stands still: all processes that have done the fewest steps are late.

    One that waits for another in a longer phase is late and not to blame: the other has done as few steps or fewer.
    """
    steps = {rank: -1 if report.step is None else report.step for rank, report in reports.items()}
    behind = [rank for rank in reports if steps[rank] == min(steps.values())]
    if not all(reports[rank].late for rank in behind):
        return None
    busy = [rank for rank in behind if not reports[rank].waiting]
    at_fault = busy or behind
    report = reports[at_fault[0]]
    names = "; ".join(f"{members[rank]}, at {reports[rank].place}" for rank in at_fault[:4])
    more = f" and {len(at_fault) - 4} more" if len(at_fault) > 4 else ""
    if not busy:
        what = f"all processes wait {report} for {report.late:.0f} s, for one another or the network: {names}{more}"
    else:
        what = f"{names}{more}: no progress for {report.late:.0f} s {report}"
    return Verdict(LOST_PROCESS, f"{what}. Ended: {report.remedy}")
