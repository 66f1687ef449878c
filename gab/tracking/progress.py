"""The progress of a run on the screen: one line, rewritten, on a terminal; elsewhere a plain line now and then."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

REDRAW = 0.1  # seconds between two drawings on a terminal
CLEAR = "\r\x1b[K"


class Progress:
    """Shows epoch, step, loss, rate, wait for data, time left and top-1. It is given numbers and never asks a device.

    Args:
        epochs, steps_per_epoch: the whole run.
        step: optimiser steps done before this start (of a resumed run), so that the time left is right.
        metric: name of the score that evaluations are judged by.
        best: that score of the best evaluation before this start, percent.
        interval: seconds between two plain lines where the stream is not a terminal.
        active: False on every rank but 0.
        stream, clock: where the lines go (stderr) and seconds that only grow; for tests.
    """

    def __init__(
        self,
        epochs: int,
        steps_per_epoch: int,
        *,
        step: int = 0,
        metric: str = "top1",
        best: float = -math.inf,
        interval: float = 30.0,
        active: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream or sys.stderr
        self._active = active
        self._terminal = self._stream.isatty()
        self._interval = REDRAW if self._terminal else interval
        self._clock = clock
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._steps = epochs * steps_per_epoch
        self._step = step
        self._first: tuple[float, int] | None = None  # time and step of the first update, after compilation
        self._shown_at = -math.inf
        self._numbers: dict[str, float | None] = {"loss": None, "images_per_second": None, "data_wait": None}
        self._metric = metric
        self._score: float | None = None
        self._best = best
        self._line = ""

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        images_per_second: float | None = None,
        data_wait: float | None = None,
    ) -> None:
        """After `step` optimiser steps. What is None keeps its last value; cheap enough for every step.

        Args:
            data_wait: share of the time that was spent waiting for data, 0 to 1.
        """
        if not self._active:
            return
        now = self._clock()
        self._first = self._first or (now, step)
        self._step = step
        given = {"loss": loss, "images_per_second": images_per_second, "data_wait": data_wait}
        self._numbers.update({name: value for name, value in given.items() if value is not None})
        if now - self._shown_at >= self._interval:
            self._shown_at = now
            self._show(self._describe(now))

    def evaluated(self, score: float, **others: float | None) -> None:
        """Leaves a line with the result of an evaluation: its score and others (`top5=`, `top1_ema=` ...), percent."""
        self._score = score
        self._best = max(self._best, score)
        rest = "".join(f", {name} {value:.2f}" for name, value in others.items() if value is not None)
        epoch = self._step / self._steps_per_epoch
        self.message(f"epoch {epoch:g}/{self._epochs}: {self._metric} {score:.2f}{rest} (best {self._best:.2f})")

    def message(self, text: str) -> None:
        """Writes a sentence on a line of its own, above the progress line."""
        if not self._active:
            return
        if self._terminal:
            self._stream.write(f"{CLEAR}{text}\n{self._line}")
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the line, so that what follows starts on one of its own."""
        if self._active and self._terminal and self._line:
            self._stream.write("\n")
            self._stream.flush()
        self._line = ""

    def _show(self, text: str) -> None:
        if self._terminal:  # a line that wraps could not be rewritten
            self._line = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write(CLEAR + self._line)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _describe(self, now: float) -> str:
        epoch, step = divmod(self._step, self._steps_per_epoch)
        if step == 0 and self._step > 0:  # the end of an epoch, not the start of the next
            epoch, step = epoch - 1, self._steps_per_epoch
        parts = [f"epoch {epoch + 1}/{self._epochs}", f"step {step}/{self._steps_per_epoch}"]
        loss, rate, wait = self._numbers.values()
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        if rate is not None:
            parts.append(f"{rate:,.0f} images/s")
        if wait is not None:
            parts.append(f"data wait {100 * wait:.0f} %")
        parts.append(f"ETA {self._time_left(now)}")
        if self._score is not None:
            parts.append(f"{self._metric} {self._score:.2f} (best {self._best:.2f})")
        return " | ".join(parts)

    def _time_left(self, now: float) -> str:
        """Time left, by the mean pace since the first update, evaluations and checkpoints included."""
        since, first = self._first or (now, self._step)
        if self._step == first:
            return "?"
        return duration((now - since) / (self._step - first) * (self._steps - self._step))


def duration(seconds: float) -> str:
    """45 s -> `0:45`, 3 h -> `3:00:00`, two days and an hour -> `2 d 1:00:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
    return f"{days} d {clock}" if days else clock
