"""Progress of a long command on stderr: a bar in a terminal, otherwise a line every ten seconds.

reading  ━━━━━━╸         1,250,000 rows  410,000 rows/s  0:00:03        rows read and sorted; the total is not known yet
replay   ━━━━━━━━━━━╸    8,000,000 rows  1,900,000 rows/s  0:00:04
"""

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

LINE_S = 10.0
"""Seconds between two lines if stderr is not a terminal."""

TOPICS = -1
"""Part number for reading topics, before any part begins."""


class RowsBar:
    """A bar with rows done, rows per second and times of a long command. A context manager; drawn from its start on.

    `line_s`: seconds between two lines if stderr is not a terminal; None writes no lines.
    """

    def __init__(
        self, console: Console | None = None, *, description: str = "reading", line_s: float | None = LINE_S
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"), _Rate())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, *times, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task(description, total=None, words="")
        self._parts: dict[int, tuple[int, int | None]] = {}
        self._line_s = line_s
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._write_lines, name="headrace-progress", daemon=True)

    def __enter__(self) -> Self:
        self._progress.start()
        if self._line_s is not None and not self._console.is_terminal:
            self._lines.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._progress.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the bar was created."""
        return self._progress.tasks[0].elapsed or 0.0

    def update(self, rows: int, total: int | None = None, *, words: str = "", description: str | None = None) -> None:
        """Show `rows` done, of `total` if it is known, and `words` beside them."""
        shown = f"{rows:,} rows{words and f' · {words}'}"
        self._progress.update(self._task, completed=rows, total=total, description=description, words=shown)

    def show(self, place: int, done: int, total: int | None) -> None:
        """Show the sum of all parts; part `place` has done `done` rows, of `total` if it is known."""
        if place >= 0 and TOPICS in self._parts:
            self._parts.clear()
            self._progress.reset(self._task, total=None)
        self._parts[place] = (done, total)
        known = [part for _, part in self._parts.values() if part is not None]
        rows = sum(part for part, _ in self._parts.values())
        whole = sum(known) if len(known) == len(self._parts) else None
        self.update(rows, whole, description="replay" if known else "reading")

    def say(self, words: str) -> None:
        """Print a line above the bar."""
        self._console.print(words)

    def _write_lines(self) -> None:
        """Run in a separate thread, so that lines are written even while a large piece is sorted."""
        while not self._ended.wait(self._line_s):
            task = self._progress.tasks[0]
            of_all = "" if task.total is None else f" of {task.total:,.0f}"
            _, _, words = str(task.fields["words"]).partition(" · ")
            after = f"after {self.elapsed_s:,.0f} s{words and f': {words}'}"
            self.say(f"{task.description}: {task.completed:,.0f}{of_all} rows {after}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:,.0f} rows/s")
