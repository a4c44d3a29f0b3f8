"""The `headrace` command."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Restore the default action of Ctrl-C: interrupted imports would print a traceback. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


with _ended_by_interrupts():  # imports take seconds, before the command itself handles Ctrl-C
    from headrace.cli import commands as commands
    from headrace.cli.console import app as app
