"""The process of a detached stack: `python -m headrace.local.keep FOLDER REDIS_PORT BROKER_PORT TOPICS_AS_JSON`.

It imports neither the project nor the engine, so it is small, and edits of the project do not affect it.
"""

import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import orjson

from headrace.errors import HeadraceError
from headrace.local.stack import LocalStack
from headrace.stack_state import StackState
from headrace.telemetry import configure_logs


def keep(
    folder: Path,
    topics: Mapping[str, int],
    redis_port: int,
    broker_port: int,
    on_ready: Callable[[StackState], object] = lambda _state: None,
) -> None:
    """Run the services of `folder` until SIGINT, SIGTERM or SIGHUP arrives. Called on the main thread.

    `on_ready` is called once, when both services answer.

    Raises:
        HeadraceError: a service does not start, or dies repeatedly.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    with LocalStack(folder, topics, redis_port=redis_port, broker_port=broker_port) as stack:
        on_ready(stack.state)
        stack.keep_running(stopping)


def main(folder: str, redis_port: str, broker_port: str, topics: str) -> int:
    """Entry point of the process; an error is one line on stderr and exit code 1."""
    configure_logs()
    try:
        keep(Path(folder), orjson.loads(topics), int(redis_port), int(broker_port))
    except HeadraceError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
