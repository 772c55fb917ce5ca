"""`training.stops`: laws. `tests/integration/test_stops.py` stops real runs."""

import signal
import threading

import pytest

from mvczigal_ref.training.stops import handling, stop_on_terminate


def test_handlers_are_what_they_were_after_an_error_too():
    """Those of a library that calls a run are its own."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    inside = []

    def fail():
        inside.extend(signal.getsignal(number) for number in numbers)
        raise OSError("full")

    with pytest.raises(OSError, match="full"), handling(numbers, lambda number, frame: None):
        fail()
    assert not {*before} & {*inside}
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_stop_is_asked_for_once_and_a_second_ctrl_c_ends_at_once():
    """The first lets the iteration end."""
    with stop_on_terminate() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_leaves_signals_to_the_first():
    """Where a caller trains beside its own work."""
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_on_terminate():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert inside == [before]
