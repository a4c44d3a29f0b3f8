"""Draw the pictures of docs/images: `make pictures`. `--demo` plays the demo for the picture of its screen."""

import html
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
WARM_ROWS = 100_000
"""Rows of history that the demo's model learns from before it plays."""
SHOWN_SHARE = 0.95
"""Share of the play after which the picture of the demo shows its screen."""

LAYERS = (
    {"kernels": "compiled loops over arrays"},
    {"schemas": "what an event is: fields, codecs, quality, dead letters"},
    {
        "streams": "where bytes come from and go to: topics, files",
        "features": "views, windows, records in memory, Redis",
    },
    {
        "history": "replay of logs, training sets, verification",
        "learners": "inputs, tables, models, gate, snapshots",
        "client": "calls of a running service",
    },
    {
        "pipelines": "materialize, join, train, archive",
        "serving": "rankings over HTTP, hot swap of models",
    },
    {"cli": "the headrace command", "demo": "the main job on one machine"},
)
"""The rooms of the engine. A room imports rooms of the layers before it, never one of a later layer."""
LEAF = {"local": "a Redis and a broker of one's own"}
"""Imports nothing but the modules at the root."""

WAYS = {
    "an event": (
        ("streams/kafka_source.py", "fetch payloads by offset"),
        ("streams/read_ahead.py", "on a thread of its own"),
        ("streams/intake.py", "payloads to rows, bad ones aside"),
        ("schemas/conform.py", "the declaration's types and times"),
        ("pipelines/materializer.py", "route to shards, decide on flushes"),
        ("pipelines/shard.py", "records and offsets of a shard"),
        ("features/event_rows.py", "rows of entities, keys hashed"),
        ("features/state/slab.py", "records in memory"),
        ("features/state/rings/update.py", "count into tiles of windows"),
        ("features/store/store.py", "changed records and offsets"),
        ("features/store/fences.py", "one atomic step a shard"),
    ),
    "a read": (
        ("features/store/reader.py", "entities of a view at a time"),
        ("features/keys.py", "keys to 64-bit ids"),
        ("features/store/client.py", "one MGET a view"),
        ("features/state/record.py", "what each record says"),
        ("features/binder.py", "windows at the time of the read"),
        ("features/expressions/derived.py", "features made of others"),
        ("features/answer.py", "columns, ages, missing records"),
    ),
    "an example": (
        ("serving/lanes/lane.py", "all waiting requests are one batch"),
        ("serving/ranker.py", "inputs are assembled and scored"),
        ("serving/impressions/log.py", "the served list is logged"),
        ("pipelines/joiner.py", "labels, once the window has passed"),
        ("pipelines/examples/from_requests.py", "rows with their labels, in groups"),
        ("pipelines/trainer.py", "micro-batches, predict then learn"),
        ("learners/online.py", "one step of the model"),
        ("learners/publishing/gate.py", "may this model be published?"),
        ("learners/publishing/snapshot.py", "written whole, with digests"),
        ("serving/swap/swap.py", "built beside the live one, swapped"),
    ),
    "a replay": (
        ("history/replay.py", "views, events and a spine"),
        ("history/log.py", "batches in event time"),
        ("history/external_sort.py", "of logs larger than memory"),
        ("history/spine.py", "keys and times to read at"),
        ("features/event_rows.py", "rows of entities, keys hashed"),
        ("features/state/slab.py", "the records of live updates"),
        ("features/binder.py", "windows at the time of each row"),
        ("features/answer.py", "a column for each feature"),
    ),
}
"""Files of headrace/ that each passes, in their order. A test traces a replay, and looks for all the files."""

FRAME = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
    "<style>text{{font:12px sans-serif;fill:#1f2328}}.name{{font-size:14px;font-weight:bold}}.small{{fill:#59636e}}"
    ".file{{font-family:monospace;font-size:12px}}.box{{fill:#f6f8fa;stroke:#59636e}}.line{{stroke:#0969da;fill:none}}"
    "</style>\n"
    '<rect width="100%" height="100%" rx="8" fill="white"/>\n{body}\n</svg>\n'
)


def rooms_picture() -> str:
    """Layers from left to right, one column each; arrows say who imports whom."""
    width, height, left = 168, 76, 16
    lines = [
        _text(left, 24, "An arrow reads: imports. A room imports rooms to its left, never one to its right.", "small")
    ]
    for column, layer in enumerate(LAYERS):
        x = left + column * (width + 24)
        for row, (room, words) in enumerate(layer.items()):
            y = (46 if len(layer) > 1 else 95) + row * (height + 22)
            lines += _box(x, y, width, height, room, words)
        if column:
            lines.append(f'<path class="line" d="M{x - 2} 133 h-18 m6 -4 l-6 4 l6 4"/>')
    (leaf,) = LEAF.items()
    y = 46 + 2 * (height + 22)
    lines += _box(left + 2 * (width + 24), y, width, height, *leaf)
    middle = left + 2 * (width + 24) + width // 2
    lines.append(f'<path class="line" d="M{middle} {y - 22} v18 m-4 -6 l4 6 l4 -6"/>')
    root = "at the root, imported by all: errors, clock, settings, telemetry, project, extras"
    lines.append(_text(left, y + height // 2 + 4, root, "small", width=2 * width))
    return FRAME.format(width=2 * left + len(LAYERS) * (width + 24) - 24, height=y + height + 16, body="\n".join(lines))


def ways_picture() -> str:
    """A column for each way; from top to bottom the files that it passes."""
    width, step, left = 280, 44, 16
    lines = []
    for column, (way, files) in enumerate(WAYS.items()):
        x = left + column * (width + 16)
        lines.append(_text(x, 28, f"The way of {way}", "name"))
        for row, (file, words) in enumerate(files):
            y = 44 + row * step
            lines.append(f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{step - 10}" rx="4"/>')
            lines += [_text(x + 8, y + 14, file, "file"), _text(x + 8, y + 29, words, "small")]
            if row:
                lines.append(f'<path class="line" d="M{x + 20} {y - 10} v8 m-3 -4 l3 4 l3 -4"/>')
    height = 44 + step * max(map(len, WAYS.values())) + 8
    return FRAME.format(width=2 * left + len(WAYS) * (width + 16) - 16, height=height, body="\n".join(lines))


def _box(x: int, y: int, width: int, height: int, name: str, words: str) -> list[str]:
    rectangle = f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    return [rectangle, _text(x + 10, y + 20, name, "name"), _text(x + 10, y + 37, words, "small", width=width - 16)]


def _text(x: int, y: int, words: str, kind: str, *, width: int | None = None) -> str:
    """One text, in as many lines as `width` pixels make necessary (7 for a letter)."""
    lines = [""]
    for word in words.split():
        is_full = width is not None and len(lines[-1]) + 1 + len(word) > width // 7
        lines = [*lines, word] if is_full else [*lines[:-1], f"{lines[-1]} {word}".strip()]
    spans = (f'<tspan x="{x}" dy="{15 if row else 0}">{html.escape(line)}</tspan>' for row, line in enumerate(lines))
    return f'<text x="{x}" y="{y}" class="{kind}">{"".join(spans)}</text>'


PICTURES = {"rooms.svg": rooms_picture, "ways.svg": ways_picture}


def demo_picture(seconds: float = 240.0, requests_per_s: float = 5.0) -> str:
    """Play the demo and export its screen late in the play; without the web font that rich would load.

    It plays slower than `make demo` so that a busy machine keeps up with it.
    """
    from rich.console import Console

    from headrace import project
    from headrace.demo import run, screen

    shown: list[screen.Figures] = []

    class Recorded(screen.Screen):
        def show(self, figures: screen.Figures) -> None:
            if figures.elapsed_s < SHOWN_SHARE * figures.total_s:
                shown[:] = [replace(figures, gap_history=[*figures.gap_history])]
            super().show(figures)

    root = project.activate(DOCS.parent)
    run.Screen = Recorded  # type: ignore[misc]
    options = run.DemoOptions(seconds, None, requests_per_s, WARM_ROWS, root / ".headrace" / "picture", 0, None)
    run.run_demo(project.load_object("pipelines.demo:demo"), root, options)
    console = Console(record=True, width=124, file=io.StringIO(), force_terminal=True)
    console.print(screen.picture(shown[-1]))
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="make demo"), flags=re.DOTALL)


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
    if "--demo" in sys.argv:
        (IMAGES / "demo.svg").write_text(demo_picture(), encoding="utf-8")
