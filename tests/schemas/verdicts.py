"""Payloads of JSON, odd ones among them, with the verdict that the parser gave on each when it was recorded.

Remake with `python -m tests.schemas.verdicts`: a change of the file is a change of what counts as a valid payload.
"""

import json
import random
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, Field

from headrace.schemas import Event, codec_for, rows_as_json

FILE = Path(__file__).parent.parent / "golden" / "json_verdicts.jsonl"
_MUTATIONS, _SEED = 600, 7
_BYTES = b'{}[]",:\\0123456789.eE+-tfnul \n\x00\x80\xff\xc3\xa9aZ='


class Spot(BaseModel):
    x: int
    label: str | None = None


class Sample(Event, topic="samples", key="n", time="at", codec="json"):
    n: int
    at: datetime
    text: str = Field(validation_alias=AliasChoices("text", "old_text"))
    price: float = 1.5
    flag: bool | None = None
    level: int | None = 7
    blob: bytes | None = None
    ended: datetime | None = None
    tags: list[str] = []  # noqa: RUF012  (pydantic copies it)
    spot: Spot | None = None
    spots: list[Spot | None] = []  # noqa: RUF012


class Timed(Event, topic="timed", key="n", time="at", codec="json", time_unit="ms"):
    n: int
    at: datetime


_WHOLE = (
    '{"n":1,"at":"2024-02-29T23:59:59.5Z","text":"a\\u00e9\\n","price":0.1,"flag":true,"level":null,"blob":"AP8=",'
    '"ended":1700000000000000,"tags":["x",""],"spot":{"x":1,"label":"l"},"spots":[null,{"x":-2}],"other":{"a":[1]}}'
)
_VALUES = {
    "n": '1 -1 0 -0 00 01 1.0 1e0 1e3 "1" true null [1] {} 9007199254740993 9223372036854775807 9223372036854775808 '
    "-9223372036854775808 -9223372036854775809 NaN Infinity +1 .5 1. 0x1 1_0 12a",
    "price": "0 -0 -0.0 1 1e5 1E+5 1e-5 1e308 1e309 -1e309 5e-324 1e-400 0.1 0.30000000000000004 9007199254740993 "
    '123456789012345678901234567890 1e99999 "NaN" "Infinity" "-Infinity" "-NaN" "nan" "1" NaN Infinity null true 1.e5',
    "at": '"2024-02-29T23:59:59Z" "2023-02-29T00:00:00Z" "2024-01-01" "2024-01-01T00:00" "2024-01-01|00:00:00" '
    '"2024-01-01T24:00:00Z" "2024-01-01T00:00:60Z" "2024-01-01T00:00:00.123456789Z" "2024-01-01T00:00:00." '
    '"2024-01-01T00:00:00+05:30" "2024-01-01T00:00:00-0530" "2024-01-01T00:00:00+05" "2024-01-01t00:00:00z" '
    '"0000-01-01T00:00:00Z" "0001-01-01T00:00:00+01:00" "9999-12-31T23:59:59.999999Z" "10000-01-01T00:00:00Z" '
    '1700000000000 1700000000000000 1700000000000.5 -1 0 1e15 1.5 9e18 1e19 "1700000000" null true "" "\\u0032024"',
    "text": '"" "a" 1 null true ["a"] {} "\\ud83d\\ude00" "\\ud83d" "\\ude00" "\\ud83dx" "\\u00" "\\x" "\\/" "\x00" '
    '"\t" "\x7f" "\\u0000" "é" \'a\' "a',
    "blob": '"" "AP8=" "AP8" "AP==" "A===" "AP8=AP8=" "A P8" "_-8=" "+/8=" "\\/\\/8=" "\\u0041P8=" 1 null',
    "flag": 'true false null True TRUE tru 0 1 "true" nulll falsee',
    "level": 'null 1 1.5 ""',
    "tags": '[] [""] null ["a",] [,] [1] ["a" "b"] ["a",null] [["a"]] {} ["a"',
    "spot": '{} null {"x":1} {"x":null} {"x":1,"x":2} {"x":"1"} {"x":1,"y":[{}]} [] {"label":"l"} {"x":1,} '
    '{"x"} {"x":}',
    "spots": '[] [null] [{}] [{"x":1},null,{"x":2,"label":null}] [1] [[{"x":1}]] null',
    "other": 'NaN {"a":1,"a":2} [1,] nul "\\ud800" 1e999999 ' + "[" * 60 + "]" * 60 + " " + "[" * 80 + "]" * 80,
}


def payloads() -> Iterator[tuple[type[Event], bytes]]:
    """Every kind of value in every kind of field, objects that are none, and seeded damage."""
    whole = _WHOLE.encode()
    fields = {name: json.dumps(value) for name, value in json.loads(_WHOLE).items()}
    for name, values in _VALUES.items():
        for value in values.split(" "):
            changed = {**fields, name: value.replace("|", " ")}
            yield Sample, ("{" + ",".join(f'"{each}":{text}' for each, text in changed.items()) + "}").encode()
        yield Sample, ("{" + ",".join(f'"{each}":{fields[each]}' for each in fields if each != name) + "}").encode()
    for value in _VALUES["at"].split(" "):
        yield Timed, f'{{"n":1,"at":{value}}}'.encode()
    yield from ((Sample, odd) for odd in _odd(whole))
    chance = random.Random(_SEED)
    for _ in range(_MUTATIONS):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(damaged))
            match chance.randrange(4):
                case 0:
                    damaged[at] = chance.choice(_BYTES)
                case 1:
                    damaged.insert(at, chance.choice(_BYTES))
                case 2:
                    del damaged[at : at + chance.randint(1, 8)]
                case _:
                    damaged[at:at] = damaged[at : at + chance.randint(1, 20)]
        yield Sample, bytes(damaged)


def _odd(whole: bytes) -> list[bytes]:
    """Payloads that are more, less or something else than one object."""
    mark, text = b"\xef\xbb\xbf", b'"text"'
    twice = whole[:-1] + b',"n":1}'
    return [
        *(b"", b" ", b"\n", b"{}", b"[]", b"null", b"1", b'"a"', b"{", b"}", b"nul", mark, mark + b"{}"),
        *(mark + whole, mark + mark + whole, b" \t\r\n" + whole + b" \t\r\n", b"\xa0" + whole, whole + b"\0"),
        *(whole + whole, whole + b"\n" + whole, whole + b",", b"[" + whole + b"]", whole[:-1], whole[:-1] + b",}"),
        *(twice, whole[:-1] + b',"\\u006e":1}', whole[:-1] + b',"other":1}', whole.replace(b'"n"', b'"\\u006e"')),
        *(whole.replace(text, b'"old_text"'), whole[:-1] + b',"old_text":"b"}', whole[:-1] + b',"old_text":null}'),
        *(whole.replace(b'"x"', b'"\xff"'), whole.replace(b'"x"', b'"\xed\xa0\x80"'), whole.replace(b":", b" : ")),
        *(whole.replace(b'"x"', b'"\xc0\x80"'), whole.replace(b'"other"', b'"\xff"'), whole.replace(b'"n"', b"n")),
        *(whole.decode().encode("utf-16"), whole.decode().encode("utf-32"), whole.replace(b",", b",//\n", 1)),
    ]


def verdicts() -> list[dict[str, Any]]:
    """What the parser says now: of each payload its row as JSON, or the reason and the detail."""
    made = []
    for event in (Sample, Timed):
        given = [payload for each, payload in payloads() if each is event]
        decoded = codec_for(event).decode(given)
        said: dict[int, Any] = {bad.index: {"reason": bad.reason, "detail": bad.detail} for bad in decoded.bad}
        rows = zip(decoded.payload_index.tolist(), rows_as_json(decoded.frame), strict=True)
        said |= {index: {"row": row.decode()} for index, row in rows}
        made += [
            {"event": event.__name__, "payload": payload.decode("latin-1"), **said[index]}
            for index, payload in enumerate(given)
        ]
    return made


def remake() -> None:
    """Write the file anew."""
    FILE.write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts()))


if __name__ == "__main__":
    remake()
