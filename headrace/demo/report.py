"""The demo's report as JSON and as text, and its criteria (*promises*)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Promise:
    """One criterion of the demo. `kept` is None when the run was too short to judge it."""

    words: str
    measured: str
    kept: bool | None


def marks(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """The four figures of one model on the served requests."""
    names = {"auc": "auc", "logloss": "logloss", "calibration": "calibration", "hit_at_10": "hit@10"}
    return {ours: figures.get(theirs) for ours, theirs in names.items()}


def promises(report: Report, *, seconds: float) -> list[Promise]:
    """Judge the promises of the default run; some are left open in a shorter one."""
    requests, parity = report["requests"], report["parity"]
    fresh, served = report["feature_freshness_ms"]["p99"], report["event_to_served_model_s"]["p95"]
    live, frozen = (report["prequential"][name]["auc"] for name in ("live", "frozen"))
    gap = None if live is None or frozen is None else live - frozen
    long_enough = seconds >= 60.0
    return [
        Promise(
            "no failed request",
            f"{requests['failed']} of {requests['ok'] + requests['failed']:,}",
            not requests["failed"],
        ),
        Promise("no answer of two versions", str(requests["mixed_version"]), not requests["mixed_version"]),
        Promise(
            "online reads equal the replay",
            f"{parity['mismatches']} of {parity['checked']:,} values differ",
            parity["checked"] > 0 and not parity["mismatches"],
        ),
        Promise("feature freshness p99 <= 1 s", _figure(fresh, "ms"), fresh is not None and fresh <= 1_000),
        Promise("event to served model p95 <= 10 s", _figure(served, "s"), served is not None and served <= 10),
        Promise("at least 20 swaps", str(report["swaps"]), report["swaps"] >= 20 if long_enough else None),
        Promise(
            "live AUC - frozen AUC >= 0.01",
            "-" if gap is None else f"{gap:+.4f} on {report['examples']['joined']:,} served examples",
            (gap is not None and gap >= 0.01) if long_enough else None,
        ),
    ]


def show(report: Report, kept: list[Promise], console: Console) -> None:
    """Print report and promises as tables."""
    table = Table(title="headrace demo", title_justify="left", box=None, show_header=False, padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, text in _lines(report):
        table.add_row(name, text)
    console.print(table)
    judged = Table(title="promises", title_justify="left", box=None, show_header=False, padding=(0, 2))
    for promise in kept:
        mark = {True: "[green]kept[/]", False: "[bold red]broken[/]", None: "[yellow]not judged: run too short[/]"}
        judged.add_row(promise.words, promise.measured, mark[promise.kept])
    console.print(judged)


def _lines(report: Report) -> list[tuple[str, str]]:
    requests, examples, latency = report["requests"], report["examples"], report["latency_ms"]
    lines = [
        ("events", f"{report['events_in']:,} through the broker, {report['events_per_s']:,.0f}/s"),
        ("freshness", _pair(report["feature_freshness_ms"], "ms", "p50", "p99")),
        (
            "requests",
            f"{requests['ok']:,} ok, {requests['failed']} failed, latency {_pair(latency, 'ms', 'p50', 'p99')}",
        ),
        ("examples", f"{examples['joined']:,} served, {examples['positives']:,} of them positive"),
        ("learned", f"{examples['trained']:,}; {examples['late']} late, {examples['duplicates']} duplicates"),
        ("swaps", f"{report['swaps']}, {_pair(report['swap_ms'], 'ms', 'p50', 'p99')}"),
        ("event to served", _pair(report["event_to_served_model_s"], "s", "p50", "p95")),
    ]
    for name, judged in report["prequential"].items():
        figures = "  ".join(f"{key} {_figure(value, '')}" for key, value in judged.items())
        lines.append((f"{name} model", figures))
    lines.append(("parity", f"{report['parity']['checked']:,} values, {report['parity']['mismatches']} mismatches"))
    lines.append(("dead letters", str(report["dead_letters"])))
    return lines


def _pair(values: Mapping[str, Any], unit: str, *names: str) -> str:
    return ", ".join(f"{name} {_figure(values.get(name), unit)}" for name in names)


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = {"ms": 1, "s": 2}.get(unit, 4)
    return f"{value:.{digits}f} {unit}".strip()
