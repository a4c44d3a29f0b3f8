"""The report of one replica (requests, latencies, swaps), and the metrics of all replicas on a machine.

If replicas share a port, a scrape reaches any one of them. So they keep their Prometheus metrics in files of one folder
(prometheus_client's multiprocess mode), and each answers for all. Counters and histograms are sums over all replicas
that ever ran, so they never fall. Gauges and process figures have the label `replica`, the process id.
"""

import os
import threading
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from headrace.clock import wall_us
from headrace.serving.swap import Swap, Swapped

SAMPLES = 4_096  # latencies kept for the percentiles
SHOWN = 256  # newest samples and swaps in one report
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that names the folder of all replicas' metrics; prometheus_client reads it at import."""

REQUESTS = Counter("headrace_requests_total", "Answered requests.", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "headrace_request_seconds",
    "From the first line of the handler to the response's bytes.",
    ["route"],
    buckets=(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 5),
)


class Report:
    """Counts and latency samples of one process since its start. Thread-safe."""

    def __init__(self) -> None:
        self.started_us = wall_us()
        self._lock = threading.Lock()
        self._metrics: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._statuses: Tally[int] = Tally()
        self._ranked: Tally[int] = Tally()
        self._latency_ms: NDArray[np.float64] = np.zeros(SAMPLES)
        self._at_us: NDArray[np.int64] = np.zeros(SAMPLES, np.int64)
        self._count = 0

    def answered(self, route: str, status: int, seconds: float, *, model_version: int | None = None) -> None:
        """Count one request; with a model version it becomes a latency sample."""
        if (route, status) not in self._metrics:  # looking a child up by its labels costs more than counting
            requests = REQUESTS.labels(route=route, status=str(status))
            self._metrics[route, status] = (requests, REQUEST_SECONDS.labels(route=route))
        requests, request_seconds = self._metrics[route, status]
        requests.inc()
        request_seconds.observe(seconds)
        with self._lock:
            self._statuses[status] += 1
            if model_version is None:
                return
            self._ranked[model_version] += 1
            if len(self._ranked) > 2 * SHOWN:
                self._ranked = Tally({version: self._ranked[version] for version in sorted(self._ranked)[-SHOWN:]})
            slot = self._count % SAMPLES
            self._latency_ms[slot] = seconds * 1_000
            self._at_us[slot] = wall_us()
            self._count += 1

    def as_dict(self, swap: Swap) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        with self._lock:
            size = min(self._count, SAMPLES)
            newest = (np.arange(self._count - min(size, SHOWN), self._count)) % SAMPLES
            latency_ms, samples = self._latency_ms[:size].copy(), (self._at_us[newest], self._latency_ms[newest])
            statuses, ranked = dict(self._statuses), dict(self._ranked)
        live = swap.live
        return {
            "replica": os.getpid(),
            "now_us": wall_us(),
            "started_us": self.started_us,
            "model_version": live.version if live else None,
            "requests": {
                "ok": sum(count for status, count in statuses.items() if status < 400),
                "failed": sum(count for status, count in statuses.items() if status >= 500),
                "refused": sum(count for status, count in statuses.items() if 400 <= status < 500),
                "by_status": {str(status): count for status, count in sorted(statuses.items())},
                "by_version": {str(version): count for version, count in sorted(ranked.items())[-SHOWN:]},
            },
            "latency_ms": percentiles(latency_ms),
            "samples": {"at_us": samples[0].tolist(), "latency_ms": np.round(samples[1], 3).tolist()},
            "swaps": {
                "count": swap.swaps,
                "refused": swap.refused,
                "last_refused": refused_entry(swap),
                "published": published_entry(swap),
                "swap_ms": percentiles([entry.swap_ms for entry in swap.history]),
                "recent": [_swap_entry(entry) for entry in list(swap.history)[-SHOWN:]],
            },
        }


class AllReplicas(Collector):
    """Prometheus collector of all replicas whose metrics are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield sums of counters and histograms, and the gauges and process figures of each running replica."""
        files = sorted(str(path) for path in self._folder.glob("*.db"))
        pids = {Path(file).stem.rpartition("_")[2] for file in files}
        running = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
        for metric in MultiProcessCollector.merge(files):  # type: ignore[no-untyped-call]
            if metric.type == "gauge":
                metric.samples = [
                    sample._replace(labels={**_without_pid(sample.labels), "replica": sample.labels["pid"]})
                    for sample in metric.samples
                    if sample.labels["pid"] in running
                ]
            yield metric
        yield from _process_metrics(sorted(running))


def _without_pid(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name != "pid"}


def _process_metrics(pids: Sequence[str]) -> Iterator[Metric]:
    """Yield CPU, memory and open files of each process, with the label `replica`."""
    by_name: dict[str, Metric] = {}
    for pid in pids:
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            family = by_name.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples += [sample._replace(labels={"replica": pid}) for sample in metric.samples]
    yield from by_name.values()


def metrics_page() -> bytes:
    """Return metrics in Prometheus's text format: of all replicas that share a folder, else of this process."""
    folder = os.environ.get(METRICS_VARIABLE)
    if not folder:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(AllReplicas(Path(folder)))
    return generate_latest(registry)


def refused_entry(swap: Swap) -> dict[str, object] | None:
    """Describe the refused version that no newer one has replaced, with reason and time; None if there is none."""
    refused = swap.last_refused
    if refused is None:
        return None
    return {"model_version": refused.version, "reason": refused.reason, "refused_us": refused.refused_us}


def published_entry(swap: Swap) -> dict[str, object]:
    """Describe the last look at the model directory: newest version, whether the live one is newer, any failure."""
    entry: dict[str, object] = {
        "newest": swap.newest,
        "looked_us": swap.looked_us,
        "live_is_unpublished": swap.is_unpublished,
    }
    if swap.look_fault is not None:
        entry["fault"] = swap.look_fault
    return entry


def _swap_entry(entry: Swapped) -> dict[str, object]:
    of_manifest = {name: entry.manifest.get(name) for name in ("created_us", "trained_through_us")}
    return {
        "model_version": entry.version,
        "swapped_us": entry.swapped_us,
        "swap_ms": round(entry.swap_ms, 3),
        **of_manifest,
    }


def percentiles(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float | int | None]:
    """Return count, p50, p90, p99 and maximum of `values`; all but the count are None if `values` is empty.

    >>> percentiles([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    if len(values) == 0:
        return {"count": 0, "p50": None, "p90": None, "p99": None, "max": None}
    p50, p90, p99, top = np.percentile(np.asarray(values, np.float64), (50, 90, 99, 100)).round(3).tolist()
    return {"count": len(values), "p50": p50, "p90": p90, "p99": p99, "max": top}
