"""The demo's live view: rates, freshness, examples, live against frozen model, versions, swaps, requests.

In a terminal it redraws in place; otherwise (a pipe, CI) it prints one line every few seconds.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_S = 5.0  # between two lines, if the output is not a terminal
REDRAW_S = 0.1  # between two drawings of a progress bar
BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32


@dataclass(slots=True)
class Figures:
    """Figures on the screen; None is not known yet. Names have units, except for counts and rates."""

    elapsed_s: float = 0.0
    total_s: float = 1.0
    event_time_us: int = 0
    speed: float = 1.0
    events: int = 0
    events_per_s: float = 0.0
    freshness_ms: Mapping[str, float | None] = field(default_factory=dict)
    requests_ok: int = 0
    requests_failed: int = 0
    requests_skipped: int = 0
    latency_ms: Mapping[str, float | None] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    learned_per_s: float = 0.0
    version: int | None = None
    swaps: int = 0
    swap_ms: Mapping[str, float | None] = field(default_factory=dict)
    live: Mapping[str, float | None] = field(default_factory=dict)
    frozen: Mapping[str, float | None] = field(default_factory=dict)
    gap_history: list[float] = field(default_factory=list)
    dead_letters: int = 0


class Screen:
    """A live view of `Figures`; a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._printed_s = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, words: str) -> None:
        """Print one line above the live view."""
        self._console.print(Text(words, style="dim"))

    def progress(self, words: str, done: int, total: int) -> None:
        """Show the progress of a stage before the live view."""
        is_due = time.monotonic() - self._printed_s >= (REDRAW_S if self._live is not None else LINE_S)
        if not is_due and done < total:
            return
        self._printed_s = time.monotonic()
        count = f"{words}: {done:,} of {total:,} rows"
        if self._live is not None:
            self._live.update(Group(Text(count), ProgressBar(total=max(total, 1), completed=done)), refresh=True)
        else:
            self._console.print(count, highlight=False)

    def show(self, figures: Figures) -> None:
        """Draw `figures`."""
        if self._live is not None:
            self._live.update(picture(figures), refresh=True)
        elif time.monotonic() - self._printed_s >= LINE_S:
            self._printed_s = time.monotonic()
            self._console.print(line(figures), highlight=False)


def picture(figures: Figures) -> Panel:
    """The panel for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    table.add_row("stream", _stream(figures))
    table.add_row("serving", _serving(figures))
    table.add_row("learning", _learning(figures))
    table.add_row("live", _quality(figures.live))
    table.add_row("frozen", _quality(figures.frozen))
    table.add_row("gap", _gap(figures))
    clock = datetime.fromtimestamp(figures.event_time_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
    title = f"headrace demo · event clock {clock} · {figures.speed:,.0f} times as fast"
    bar = ProgressBar(total=figures.total_s, completed=min(figures.elapsed_s, figures.total_s))
    ends = f"{figures.elapsed_s:.0f} of {figures.total_s:.0f} s"
    return Panel(Group(table, Text(), bar), title=title, subtitle=ends, border_style="cyan")


def line(figures: Figures) -> str:
    """One line of text, for output that is not a terminal."""
    gap = _difference(figures)
    return (
        f"{figures.elapsed_s:5.1f} s  {figures.events:>7,} events"
        f"  {figures.requests_ok:>5} ok {figures.requests_failed} failed"
        f"  model {figures.version}  {figures.swaps} swaps  fresh p99 {_ms(figures.freshness_ms, 'p99')}"
        f"  AUC live {_number(figures.live, 'auc')} frozen {_number(figures.frozen, 'auc')}"
        f" gap {'-' if gap is None else f'{gap:+.4f}'}"
    )


def _stream(figures: Figures) -> str:
    return (
        f"{figures.events:,} events  {figures.events_per_s:,.0f}/s   feature freshness"
        f" p50 {_ms(figures.freshness_ms, 'p50')} p99 {_ms(figures.freshness_ms, 'p99')}"
        f"   {figures.dead_letters} dead letters"
    )


def _serving(figures: Figures) -> str:
    skipped = f"  {figures.requests_skipped} skipped" if figures.requests_skipped else ""
    failed = f"[red]{figures.requests_failed} failed[/]" if figures.requests_failed else "0 failed"
    return (
        f"{figures.requests_ok:,} requests  {failed}{skipped}   latency p50 {_ms(figures.latency_ms, 'p50')}"
        f" p99 {_ms(figures.latency_ms, 'p99')}"
    )


def _learning(figures: Figures) -> str:
    joined, positives = figures.examples.get("joined", 0), figures.examples.get("positives", 0)
    return (
        f"{joined:,} served examples joined, {positives:,} positive   {figures.learned_per_s:,.0f} examples/s learned"
        f"   model {figures.version}   {figures.swaps} swaps p99 {_ms(figures.swap_ms, 'p99')}"
    )


def _quality(judged: Mapping[str, float | None]) -> str:
    return (
        f"AUC {_number(judged, 'auc')}   log-loss {_number(judged, 'logloss', 5)}"
        f"   calibration {_number(judged, 'calibration', 3)}   hit@10 {_number(judged, 'hit_at_10', 3)}"
    )


def _gap(figures: Figures) -> str:
    gap = _difference(figures)
    if gap is None:
        return "-"
    return f"{gap:+.4f} AUC of the live model over the frozen one   {spark(figures.gap_history)}"


def _difference(figures: Figures) -> float | None:
    live, frozen = figures.live.get("auc"), figures.frozen.get("auc")
    return None if live is None or frozen is None else live - frozen


def spark(values: list[float]) -> str:
    """Draw the newest values as a row of bars; the minimum is the lowest bar.

    >>> spark([0.0, 1.0, 0.5])
    '▁█▄'
    """
    newest = values[-SPARK_WIDTH:]
    if not newest:
        return ""
    low, span = min(newest), max(max(newest) - min(newest), 1e-12)
    return "".join(BARS[int((value - low) / span * (len(BARS) - 1))] for value in newest)


def _ms(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return "-" if value is None else f"{value:.0f} ms"


def _number(values: Mapping[str, Any], name: str, digits: int = 4) -> str:
    value = values.get(name)
    return "-" if value is None else f"{value:.{digits}f}"
