"""An engine to be killed: it says "ready", waits for a word, then brings the log into the store.

It owns the shards with shard % count == index: in a Bytewax flow of one worker when count is 1, else in the plain loop.
What a killed engine had sent can arrive after its follower has read the fences, the store may be away when it starts,
and a broker that came back may not have all of its log again: then it says so and begins anew, as its supervisor would
let it.

Importing all that an engine needs takes 2 s, being killed takes none. So engines are forked from a process that has
done the imports (`NURSERY`), before Polars has any threads: declarations, which start them, are imported by the child.
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(["benchmarks.crashes.nursery"])

ROWS_MAX = 4_096
FLUSH_S = (0.005, 0.05)
RETRY_S = 0.1
WAIT_S = 120.0
BROKER_OPTIONS = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 100, "socket.timeout.ms": 1_000}


@dataclass(frozen=True)
class Job:
    """What an engine does. `log`: a glob of Parquet files, or host:port of a broker, which it follows until SIGTERM."""

    log: str
    store_url: str
    index: int = 0
    count: int = 1
    from_broker: bool = False


class Engine:
    """One engine in a process of its own; it waits for `go`."""

    def __init__(self, job: Job) -> None:
        self._words, theirs = NURSERY.Pipe()
        self._process = NURSERY.Process(target=main, args=(job, theirs))
        self._process.start()
        self._told: list[str] = []
        theirs.close()

    def go(self) -> None:
        """Let it run, once it is ready."""
        assert self._words.recv() == "ready"
        self._words.send("go")

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def has_said(self, beginning: str) -> bool:
        """Whether it has said something that begins so."""
        with contextlib.suppress(EOFError, ConnectionResetError):  # reset: it was killed before it had read its word
            while self._words.poll():
                self._told.append(self._words.recv())
        return any(line.startswith(beginning) for line in self._told)

    def kill(self) -> list[str]:
        """End it with kill -9; return what it had said."""
        self._process.kill()
        return self.end()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it stand still, as in a long pause of its machine, if it still runs."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def terminate(self) -> list[str]:
        """Ask it to end by SIGTERM; return what it had said."""
        self._process.terminate()
        return self.end()

    def end(self) -> list[str]:
        """Wait for its end; return what it had said. A death of its own making is an error."""
        self._process.join(WAIT_S)
        self.has_said("")
        assert self._process.exitcode in {0, -signal.SIGKILL}, "\n".join(self._told)
        self._words.close()
        return self._told

    def close(self) -> None:
        """Let go of it, whatever its state."""
        self._process.kill()
        self._process.join()

    def _signal(self, number: int) -> None:
        assert self._process.pid
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def main(job: Job, words: Connection) -> None:
    """The engine's process."""
    try:
        _serve(job, words)
    except BaseException:
        words.send(traceback.format_exc())
        raise


def _serve(job: Job, words: Connection) -> None:
    from benchmarks.crashes.declaration import VIEWS
    from headrace.errors import FencedError, SourceError, StoreUnavailableError
    from headrace.features import plan_of
    from headrace.features.warm import warm_up
    from headrace.schemas import FileDeadLetters

    for view in VIEWS:
        warm_up(plan_of(view))
    with tempfile.TemporaryDirectory() as folder:
        letters = FileDeadLetters(folder)
        words.send("ready")
        words.recv()
        while True:
            try:
                _bring_in(job, letters)
            except FencedError:
                words.send("fenced")
            except StoreUnavailableError:
                time.sleep(RETRY_S)
            except SourceError as exc:
                words.send(f"source: {exc}")
                time.sleep(RETRY_S)
            else:
                break
    words.send("done")


def _bring_in(job: Job, letters: object) -> None:
    from benchmarks.crashes.declaration import VIEWS, Reading
    from headrace.features.store import OnlineStore
    from headrace.pipelines import FileSource, Intake, KafkaSource, Materializer, loop
    from headrace.pipelines.flow import materialize_flow
    from headrace.pipelines.runner import run_flow

    source = (
        KafkaSource(job.log, [Reading], rows_max=ROWS_MAX, config=BROKER_OPTIONS)
        if job.from_broker
        else FileSource(job.log, Reading, sort=False, rows_max=ROWS_MAX)
    )
    with OnlineStore.open(job.store_url) as store:
        pace = {"flush_s": FLUSH_S, "catch_up_s": FLUSH_S[1]}
        if job.count == 1:
            run_flow(materialize_flow(source, VIEWS, store, {"dead_letters": letters}, **pace), runner="bytewax")
        else:
            step = Materializer(VIEWS, store, owner=(job.index, job.count), **pace)
            loop.run(source, Intake((Reading,), dead_letters=letters), [step])
