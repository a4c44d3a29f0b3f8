"""Metrics of several replicas from one scrape, of which some have ended."""

import os
import subprocess
import sys

from prometheus_client import CollectorRegistry, generate_latest

from headrace.serving.report import METRICS_VARIABLE, AllReplicas

REPLICA = """
import sys
from prometheus_client import Counter, Gauge, Histogram
Counter("asked_total", "Asked.", ["route"]).labels("rank").inc(float(sys.argv[1]))
Gauge("version", "Live.").set(float(sys.argv[1]))
Histogram("took_seconds", "Took.", buckets=(1, 10)).observe(float(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


def start(folder, number):
    process = subprocess.Popen(
        [sys.executable, "-c", REPLICA, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, METRICS_VARIABLE: str(folder)},
    )
    process.stdout.readline()
    return process


def test_counters_are_sums_and_gauges_are_of_each_replica_that_runs(tmp_path):
    """
    replicas counting 2 and 5 | the first ends: the sums stay, its gauge goes
    """
    registry = CollectorRegistry()
    registry.register(AllReplicas(tmp_path))
    sums = ['asked_total{route="rank"} 7.0', 'took_seconds_bucket{le="1.0"} 0.0', "took_seconds_sum 7.0"]
    with start(tmp_path, 2) as first, start(tmp_path, 5) as second:
        page = generate_latest(registry).decode().splitlines()
        gauges = [f'version{{replica="{first.pid}"}} 2.0', f'version{{replica="{second.pid}"}} 5.0']
        assert set(sums + gauges) <= set(page)
        assert sum(line.startswith("process_resident_memory_bytes{replica=") for line in page) == 2
        first.communicate()
        page = generate_latest(registry).decode().splitlines()
        assert {*sums, gauges[1]} <= set(page)
        assert not any(f'replica="{first.pid}"' in line for line in page)
        second.communicate()
