import io

import pytest

from gab.tracking.progress import Progress, duration


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shown(screen: Screen) -> list[str]:
    """The lines as a person sees them: what a carriage return and "erase to the end" leave."""
    return [line.rsplit("\r\x1b[K", 1)[-1] for line in screen.getvalue().split("\n")]


def test_one_line_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    screen = Screen(terminal=True)
    progress = Progress(3, 10, stream=screen, clock=clock)
    for step in range(1, 16):
        clock.now += 1.0
        progress.update(step, loss=2.5, images_per_second=1234.4, data_wait=0.031)
    expected = "epoch 2/3 | step 5/10 | loss 2.5000 | 1,234 images/s | data wait 3 % | ETA 0:15"
    assert shown(screen) == [expected]
    progress.close()
    assert shown(screen) == [expected, ""]


def test_top1_of_the_last_and_the_best_evaluation(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    screen = Screen(terminal=True)
    progress = Progress(3, 10, stream=screen, clock=clock)
    for step, top1 in [(10, 70.0), (20, 60.0)]:
        clock.now += 1.0
        progress.update(step)
        progress.evaluated(top1, top5=90.0, top1_ema=None)
    clock.now += 1.0
    progress.update(21)
    lines = shown(screen)
    assert lines[0] == "epoch 1/3: top1 70.00, top5 90.00 (best 70.00)"
    assert lines[1] == "epoch 2/3: top1 60.00, top5 90.00 (best 70.00)"
    assert lines[2].startswith("epoch 3/3 | step 1/10 | ")
    assert lines[2].endswith(" | top1 60.00 (best 70.00)")


def test_messages_leave_the_line_whole(clock: Clock) -> None:
    screen = Screen(terminal=True)
    progress = Progress(1, 10, stream=screen, clock=clock)
    progress.update(1)
    progress.message("a sentence")
    assert shown(screen) == ["a sentence", "epoch 1/1 | step 1/10 | ETA ?"]


def test_the_line_never_wraps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    screen = Screen(terminal=True)
    Progress(1, 10, stream=screen, clock=clock).update(1, loss=2.5)
    assert shown(screen) == ["epoch 1/1 | step 1/"]


def test_a_terminal_is_not_redrawn_at_every_step(clock: Clock) -> None:
    screen = Screen(terminal=True)
    progress = Progress(1, 1000, stream=screen, clock=clock)
    for step in range(1, 1001):
        clock.now += 0.001
        progress.update(step)
    assert screen.getvalue().count("\r") == 10


def test_plain_lines_at_intervals_elsewhere(clock: Clock) -> None:
    screen = Screen(terminal=False)
    progress = Progress(1, 100, interval=30.0, stream=screen, clock=clock)
    for step in range(1, 101):
        progress.update(step)
        clock.now += 1.0
    progress.message("a sentence")
    progress.close()
    steps = [line.split(" | ")[1] for line in screen.getvalue().splitlines()[:-1]]
    assert steps == ["step 1/100", "step 31/100", "step 61/100", "step 91/100"]
    assert screen.getvalue().endswith("a sentence\n")
    assert "\r" not in screen.getvalue()
    assert "\x1b" not in screen.getvalue()


def test_time_left_of_a_resumed_run_counts_its_own_steps(clock: Clock) -> None:
    screen = Screen(terminal=False)
    progress = Progress(10, 100, step=500, interval=0.0, stream=screen, clock=clock)
    progress.update(501)
    clock.now += 2.0
    progress.update(502)
    assert "epoch 6/10 | step 2/100 | ETA 16:36" in screen.getvalue()  # 498 steps of 2 s


def test_other_ranks_show_nothing(clock: Clock) -> None:
    screen = Screen(terminal=True)
    progress = Progress(1, 10, active=False, stream=screen, clock=clock)
    progress.update(1, loss=1.0)
    progress.evaluated(50.0)
    progress.message("a sentence")
    progress.close()
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (2 * 86400 + 3661, "2 d 1:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
