"""Plots of load runs: latency by percentile, and over time or against the rate. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.client.load import LoadRun
from headrace.pictures import check_plot

NINES_MAX = 5
"""The percentile axis ends at 99.999 %."""


def plot_load(runs: Sequence[LoadRun], path: Path) -> None:
    """Plot the latency of answered requests by percentile, with one curve per rate.

    The second panel shows latency over time for a single run, or p50, p99 and the failed share against the rate.

    Raises:
        ConfigError, MissingExtraError: as `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        latency_ms = run.latency_ms
        above = (np.arange(len(latency_ms), 0, -1) - 0.5) / max(len(latency_ms), 1)  # share of slower requests
        left.plot(1 / above, latency_ms, label=f"{run.rate_per_s:g}/s")
    nines = range(NINES_MAX + 1)
    left.set_xlim(1, 10**NINES_MAX)
    left.set_xscale("log")
    left.set_xticks([10**n for n in nines], [f"{100 - 100 / 10**n:g} %" for n in nines])
    left.set(xlabel="percentile", ylabel="latency from the scheduled time, ms")
    _set_log(left, any(len(run.latency_ms) for run in runs))
    left.legend(title="offered")
    if len(runs) == 1:
        _over_time(right, runs[0])
    else:
        _against_rate(right, runs)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _set_log(axes: Any, has_values: bool) -> None:
    """Set a logarithmic scale of latencies; matplotlib cannot draw it without values."""
    if has_values:
        axes.set_yscale("log")


def _over_time(axes: Any, run: LoadRun) -> None:
    for outcome, part in run.requests.group_by("outcome", maintain_order=True):
        axes.plot(part["scheduled_s"].to_numpy(), part["latency_ms"].to_numpy(), ".", markersize=3, label=outcome[0])
    axes.set(xlabel="scheduled at, s", ylabel="latency, ms")
    _set_log(axes, run.requests.height > 0)
    if run.requests.height:
        axes.legend()


def _against_rate(axes: Any, runs: Sequence[LoadRun]) -> None:
    rates = [run.rate_per_s for run in runs]
    summaries = [run.summary() for run in runs]
    for name in ("p50_ms", "p99_ms"):
        axes.plot(rates, [summary[name] for summary in summaries], marker="o", label=name.removesuffix("_ms"))
    axes.set(xlabel="offered, requests a second", ylabel="latency, ms")
    _set_log(axes, any(summary["ok"] for summary in summaries))
    shares = axes.twinx()
    failed = [100 * (1 - summary["ok"] / max(summary["sent"], 1)) for summary in summaries]
    shares.bar(rates, failed, width=0.02 * max(rates), color="tab:red", alpha=0.4)
    shares.set(ylabel="failed, %", ylim=(0, 100))
    axes.legend()
