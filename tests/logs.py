"""Log lines captured for a test while threads log.

structlog's own `capture_logs` replaces the list of processors in place when it begins and ends: a thread that logs at
that moment meets half a list, and raises. Here one processor comes first for the whole run, and hands lines to the
capture, if there is one.
"""

import contextlib
from collections.abc import Iterator

import structlog
from structlog.testing import LogCapture
from structlog.typing import EventDict, WrappedLogger

_captures: list[LogCapture] = []


def _first(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """The processor: takes the line into the innermost capture, which raises DropEvent."""
    captures = _captures[-1:]
    return captures[0](logger, name, event) if captures else event


def install() -> None:
    """Put the processor first. Called before each test, as whatever configures logs in this process removes it."""
    processors = structlog.get_config()["processors"]
    if _first not in processors:
        processors.insert(0, _first)  # in place, as loggers that are cached keep the list


@contextlib.contextmanager
def capture_logs() -> Iterator[list[EventDict]]:
    """Capture the lines of all threads, which are not shown meanwhile."""
    install()
    capture = LogCapture()
    _captures.append(capture)
    try:
        yield capture.entries
    finally:
        _captures.remove(capture)
