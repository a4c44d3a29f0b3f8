"""A process that sends Avro messages at a steady rate; its stamps are the moments of sending.

python -m benchmarks.broker.producer BOOTSTRAP TOPIC LOG.parquet EVENTS_PER_SECOND SECONDS

It prints "ready" once everything is encoded, waits for a line, sends, and prints how long it took.
"""

import sys
import time

import polars as pl
from confluent_kafka import Producer

from benchmarks.broker.declaration import PARTITIONS
from benchmarks.materialize.declaration import Engagement
from headrace.schemas import codec_for

TICK_S = 0.01


def main() -> None:
    bootstrap, topic, log, rate, seconds = sys.argv[1:]
    payloads = codec_for(Engagement).encode(pl.read_parquet(log))
    ticks, per_call = round(float(seconds) / TICK_S), max(1, round(float(rate) * TICK_S / PARTITIONS))
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 5, "log_level": 0, "queue.buffering.max.messages": 2_000_000}
    )
    producer.list_topics(topic, timeout=10)  # connected before the first tick
    print("ready", flush=True)
    sys.stdin.readline()
    started_s = time.perf_counter()
    at = 0
    for tick in range(ticks):
        for partition in range(PARTITIONS):
            part = [payloads[index % len(payloads)] for index in range(at, at + per_call)]
            producer.produce_batch(topic, [{"value": payload} for payload in part], partition=partition)
            at += per_call
        producer.poll(0)
        time.sleep(max(0.0, started_s + (tick + 1) * TICK_S - time.perf_counter()))
    took_s = time.perf_counter() - started_s
    assert producer.flush(30) == 0
    print(at, took_s, flush=True)


if __name__ == "__main__":
    main()
