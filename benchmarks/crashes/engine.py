"""An engine to be killed: it says "ready", waits for a line, then brings the whole log into the store.

python -m benchmarks.crashes.engine LOG_GLOB STORE_URL INDEX COUNT WORKERS

It owns the shards with shard % COUNT == INDEX: in a Bytewax flow of WORKERS workers when COUNT is 1, else in the plain
loop. What a killed engine had sent can arrive after its follower has read the fences, and the store may be away when it
starts: then it begins anew, as its supervisor would let it.
"""

import sys
import tempfile
import time

from benchmarks.crashes.declaration import VIEWS, Reading
from headrace.errors import FencedError, StoreUnavailableError
from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.features.warm import warm_up
from headrace.pipelines import FileSource, Intake, Materializer, loop
from headrace.pipelines.on_bytewax import materialize_flow
from headrace.pipelines.on_bytewax import run as run_flow
from headrace.schemas import FileDeadLetters

ROWS_MAX = 4_096
FLUSH_S = (0.005, 0.05)
RETRY_S = 0.1


def bring_in(log: str, url: str, index: int, count: int, workers: int, letters: FileDeadLetters) -> None:
    source = FileSource(log, Reading, sort=False, rows_max=ROWS_MAX)
    with OnlineStore.open(url) as store:
        if count == 1:
            intake = {"dead_letters": letters}
            flow = materialize_flow(source, VIEWS, store, intake, flush_s=FLUSH_S, catch_up_s=FLUSH_S[1])
            run_flow(flow, workers)
        else:
            step = Materializer(VIEWS, store, owner=(index, count), flush_s=FLUSH_S, catch_up_s=FLUSH_S[1])
            loop.run(source, Intake((Reading,), dead_letters=letters), [step])


def main() -> None:
    log, url, index, count, workers = sys.argv[1:]
    for view in VIEWS:
        warm_up(plan_of(view))
    with tempfile.TemporaryDirectory() as folder:
        letters = FileDeadLetters(folder)
        print("ready", flush=True)
        sys.stdin.readline()
        while True:
            try:
                bring_in(log, url, int(index), int(count), int(workers), letters)
            except FencedError:
                print("fenced", flush=True)
                continue
            except StoreUnavailableError:
                time.sleep(RETRY_S)
                continue
            break
    print("done", flush=True)


if __name__ == "__main__":
    main()
