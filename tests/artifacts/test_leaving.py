"""What SIGTERM and SIGUSR1 do to a step that saves nothing, to one that can save, and to one that never comes to it."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from dmdpipe.artifacts import leaving
from dmdpipe.artifacts.leaving import LEAVING, signals_as_exit


def told(times: int, can_save: bool, by: signal.Signals = signal.SIGTERM) -> list[str]:
    """Return how far a step comes that gets a signal so many times."""
    came: list[str] = []
    with pytest.raises(SystemExit) as ended, signals_as_exit():
        LEAVING.can_save = can_save
        for _ in range(times):
            signal.raise_signal(by)
            came.append("told")
        assert LEAVING.is_told
        LEAVING.leave()
    assert ended.value.code == 128 + signal.SIGTERM
    return came


def test_a_step_that_saves_nothing_leaves_at_once() -> None:
    assert told(1, can_save=False) == []


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGUSR1])
def test_one_that_can_save_goes_on_until_it_has_and_the_second_time_leaves_at_once(by: signal.Signals) -> None:
    assert told(1, can_save=True, by=by) == ["told"]
    assert told(2, can_save=True, by=by) == ["told"]


def test_one_that_does_not_come_to_save_leaves_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "SECONDS_TO_SAVE", 0.01)
    deadline = time.monotonic() + 30
    with pytest.raises(SystemExit), signals_as_exit():
        LEAVING.can_save = True
        signal.raise_signal(signal.SIGTERM)
        while time.monotonic() < deadline:
            pass
    assert time.monotonic() < deadline


def test_on_the_way_out_nothing_disturbs_the_clean_up() -> None:
    cleaned = False
    with pytest.raises(SystemExit), signals_as_exit():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned


@pytest.mark.parametrize("can_save", [True, False])
def test_afterwards_signals_are_what_they_were_and_the_next_step_begins_untold(can_save: bool) -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    told(1, can_save)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert not LEAVING.can_save and not LEAVING.is_told


def test_in_another_thread_signals_are_left_alone() -> None:
    handlers = []

    def run() -> None:
        with signals_as_exit():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]
