from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from impresa.training.processes import GracefulStop, TrainingInterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_insists(number: int, caplog: pytest.LogCaptureFixture) -> None:
    with GracefulStop() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert "stopping after this step" in caplog.text
        with pytest.raises(TrainingInterrupted):
            os.kill(os.getpid(), number)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with GracefulStop():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_forked_worker_leaves_the_decision_to_its_parent(caplog: pytest.LogCaptureFixture) -> None:
    with GracefulStop() as stop, caplog.at_level(logging.WARNING):
        stop._process = -1  # as in a child
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
        assert not caplog.records


def test_outside_the_main_thread_there_are_no_handlers() -> None:
    found: list[object] = []

    def enter() -> None:
        with GracefulStop() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]
