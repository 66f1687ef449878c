import signal
import threading
from collections.abc import Callable

import pytest

from gab.distributed import signals
from gab.errors import Stopped

send = signal.raise_signal


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_before_defer_it_ends_at_once(number: int) -> None:
    with pytest.raises(Stopped, match="before its first step") as stopped, signals.listening():
        send(number)
    assert stopped.value.signal == number


def test_interrupt_before_defer_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), signals.listening():
        send(signal.SIGINT)


def test_after_defer_the_first_one_is_noted() -> None:
    with signals.listening():
        signals.defer()
        assert signals.asked() == 0
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        assert signals.asked() == signal.SIGUSR1


def test_afterwards_all_is_as_before() -> None:
    before = [signal.getsignal(number) for number in signals.NAMES]
    with signals.listening():
        signals.defer()
        send(signal.SIGTERM)
        assert [signal.getsignal(number) for number in signals.NAMES] != before
    assert [signal.getsignal(number) for number in signals.NAMES] == before
    assert signals.asked() == 0
    with pytest.raises(Stopped), signals.listening():  # the next run of a sweep starts afresh
        send(signal.SIGTERM)


def test_other_threads_may_run_it() -> None:
    seen = []

    def run() -> None:
        with signals.listening():
            seen.append(signals.asked())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0]


def test_blocked_until_somebody_listens() -> None:
    with signals.blocked():
        send(signal.SIGUSR1)  # would end this process
        with pytest.raises(Stopped), signals.listening():
            raise AssertionError("not reached: the signal was waiting")


def interrupt_twice() -> None:
    with signals.listening():
        signals.defer()
        send(signal.SIGINT)
        print("goes on", flush=True)
        send(signal.SIGINT)
        print("not reached", flush=True)


def test_second_interrupt(forked: Callable) -> None:
    one = forked(interrupt_twice)
    assert one.wait() == 130
    assert one.text == "\nCtrl-C: stopping; once more ends it at once\ngoes on\n"


def test_names() -> None:
    assert signals.name(signal.SIGINT) == "Ctrl-C"
    assert signals.name(signal.SIGTERM) == "SIGTERM (scancel or preemption)"
