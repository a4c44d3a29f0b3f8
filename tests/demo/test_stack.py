"""The demo's services: Ctrl-C ends them, wherever it comes."""

import contextlib
import signal

import pytest

from headrace.demo.stack import Stack


def test_an_interrupt_that_somebody_swallowed_is_raised_at_the_next_look(tmp_path):
    """As a finalizer does, or a callback of a library; afterwards the signal means what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    with Stack(tmp_path, tmp_path, {"visits": 1}, {}) as stack:
        stack.check()
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stack.check()
    assert signal.getsignal(signal.SIGINT) is before
