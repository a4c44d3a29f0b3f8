"""The payloads of a few rows as they were first written. Remake them with `python -m tests.schemas.golden`.

A change of these files is a change of what brokers hold: old payloads must stay readable.
"""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from headrace.schemas import codec_for
from tests.schemas.samples import Everything, frame_of

FOLDER = Path(__file__).parent.parent / "golden"
JSON, AVRO, ARROW = (FOLDER / name for name in ("everything.jsonl", "everything.avro.hex", "everything.arrows"))

_FULL = {
    "event_id": 'e-1 "quoted" \\ é😀\n\x01',
    "event_time": datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC),
    "number": -(2**63),
    "weight": 0.1,
    "flag": True,
    "blob": b"\x00\xff>",
    "colour": "red",
    "word": "é",
    "level": -7,
    "maybe_number": 2**63 - 1,
    "maybe_weight": -0.0,
    "maybe_flag": False,
    "maybe_text": "",
    "maybe_blob": b"",
    "maybe_time": datetime(1969, 12, 31, 23, 59, 59, 1, UTC),
    "count": 0,
    "since": datetime(1, 1, 1, tzinfo=UTC),
    "note": "n" * 70,
    "tags": ["a", "", "bc"],
    "weights": [1e308, 5e-324, 1.5],
    "times": [None, datetime(9999, 12, 31, tzinfo=UTC)],
    "maybe_list": [[1, -1], None, []],
    "place": {"number": 64, "label": None, "marks": [b"x", b""]},
    "maybe_place": {"number": -65, "label": "l", "marks": []},
    "places": [{"number": 1, "label": None, "marks": []}, {"number": 2, "label": "two", "marks": [b"m"]}],
}
_SPARSE = {name: None for name in _FULL if name.startswith("maybe")} | {
    "tags": [],
    "weights": [float("nan"), float("inf"), -float("inf")],
    "times": [],
    "places": [],
}


def frame() -> pl.DataFrame:
    """The rows that the files hold."""
    return frame_of(Everything, [_FULL, _FULL | _SPARSE])


def remake() -> None:
    """Write the files anew."""
    made = frame()
    JSON.write_bytes(b"".join(payload + b"\n" for payload in codec_for(Everything, "json").encode(made)))
    AVRO.write_text("".join(payload.hex(" ", 8) + "\n" for payload in codec_for(Everything, "avro").encode(made)))
    ARROW.write_bytes(codec_for(Everything, "arrow").encode(made)[0])


if __name__ == "__main__":
    remake()
