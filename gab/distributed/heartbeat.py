"""Where the main thread of a process is, and how long each phase may take without progress."""

import linecache
import re
import sys
import sysconfig
import threading
from types import FrameType

from gab.distributed.verdict import Report

LIMITS = {  # seconds without progress
    "starting": 3600.0,  # one process of a node may copy the data while the others wait
    "loading": 900.0,  # the first batch: workers start, FFCV compiles, a cold file system
    "compiling": 1800.0,  # torch.compile, several graphs
    "training": 45.0,  # or SLOW times the slowest step so far
    "evaluating": 900.0,  # one batch; the first one compiles
    "saving": 900.0,  # to a busy file system
    "closing": 300.0,  # figures, and a dashboard that does not answer
}
SLOW = 5.0

_WAITS = ("torch.distributed", "torch.autograd", "torch.nn.parallel", "torch.cuda")  # modules that wait for others
_WAITING_LINE = re.compile(r"\.(wait|item|tolist|cpu|synchronize)\(")  # leaves Python, for others or the device
_LIBRARIES = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))


class Heartbeat:
    """Where the main thread is. In a run of several processes a thread tells it to the first one (see `watch`)."""

    def __init__(self) -> None:
        self.now: tuple[str, int | None, int] = ("starting", None, 0)  # phase, step, calls: replaced as a whole

    def at(self, phase: str, step: int | None = None) -> None:
        """Tell where the main thread is; every call is progress. Costs less than a microsecond.

        Args:
            phase: one of LIMITS.
            step: of training; the last one stays if it is None.
        """
        assert phase in LIMITS, phase
        _, last, calls = self.now
        self.now = (phase, last if step is None else step, calls + 1)


class Progress:
    """How long the main thread has not got on, by a clock of seconds that its user lets tick."""

    def __init__(self, heartbeat: Heartbeat):
        self.heartbeat = heartbeat
        self.before = heartbeat.now
        self.age = self.slowest_step = 0.0

    def tick(self, seconds: float) -> Report:
        """Count `seconds` more; returns what there is to report."""
        now = phase, step, calls = self.heartbeat.now
        self.age += seconds
        if calls != self.before[2]:
            if self.before[0] == "training":
                self.slowest_step = max(self.slowest_step, self.age)
            self.before, self.age = now, 0.0
        limit = LIMITS[phase]
        if phase == "training":
            limit = max(limit, SLOW * self.slowest_step)
        if self.age <= limit:
            return Report(phase, step)
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        return Report(phase, step, self.age, waits_for_others(frame, frame.f_lineno), _place(frame))


def waits_for_others(frame: FrameType, number: int) -> bool:
    """Whether that line of a frame ends only when other processes, or the device, have done their part."""
    line = linecache.getline(frame.f_code.co_filename, number)
    return frame.f_globals.get("__name__", "").startswith(_WAITS) or bool(_WAITING_LINE.search(line))


def _place(frame: FrameType) -> str:
    """The innermost line that belongs to no library, as people look it up."""
    ours: FrameType | None = frame
    while ours and ours.f_code.co_filename.startswith((*_LIBRARIES, "<")):
        ours = ours.f_back
    frame = ours or frame
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
