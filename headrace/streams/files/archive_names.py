"""Names of an archive's files, which state the offsets in a file: formatting and parsing.

    <folder>/<topic>/offsets.json                                           committed: partition -> next offset
    <folder>/<topic>/2024-05-01/<partition>.<first>-<next offset>.parquet

A file belongs to the archive once its next offset is committed; other files are being written, or left by a crash.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from urllib.parse import quote, unquote

import orjson

from headrace.errors import SourceError
from headrace.redaction import shown_url

OFFSETS = "offsets.json"
OFFSET_COLUMN = "_offset"
"""Column of a file, in addition to those of the event, with the offset of each row in its partition."""

_NAME = re.compile(r"(?P<rest>.+)\.(?P<first>\d+)-(?P<next>\d+)\.parquet")


def archive_name(partition: str, first: int, next_offset: int) -> str:
    """Name of the file with the offsets [first, next_offset) of `partition`, which is "<topic>/<rest>"."""
    return f"{quote(partition.partition('/')[2], safe='')}.{first}-{next_offset}.parquet"


def named_rows(topic: str, name: str) -> tuple[str, int, int] | None:
    """Parse a file's name to (partition, first, next offset); None if it is not a name that the archiver writes.

    >>> named_rows("clicks", archive_name("clicks/2", 100, 250))
    ('clicks/2', 100, 250)
    """
    match = _NAME.fullmatch(name)
    return (f"{topic}/{unquote(match['rest'])}", int(match["first"]), int(match["next"])) if match else None


def is_committed(place: str, topic: str, offsets: Mapping[str, int]) -> bool:
    """Whether the file at `place`, in the archive of `topic`, is part of it.

    Raises:
        SourceError: it is not a name that the archiver writes.
    """
    rows = named_rows(topic, place.rpartition("/")[2])
    if rows is None:
        raise SourceError(
            f"{shown_url(place)} lies in an archive and is not named as its files are, PARTITION.FIRST-NEXT.parquet, "
            "so nobody can say which offsets it holds; move it out, or name the files by a pattern, not the folder"
        )
    partition, _, next_offset = rows
    return next_offset <= offsets.get(partition, 0)


def parse_offsets(text: bytes, archive: str) -> dict[str, int]:
    """Parse the content of an `offsets.json` of `archive`: the next offset of each partition.

    Raises:
        SourceError: the content is damaged.
    """
    try:
        offsets = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        reason = str(exc)
    else:
        if isinstance(offsets, dict) and all(type(offset) is int and offset >= 0 for offset in offsets.values()):
            return offsets
        reason = "no object of offsets"
    raise SourceError(f"archive {archive}: its {OFFSETS} is damaged ({reason}); restore it, or archive anew")


def refuse_overlaps(names: Iterable[str], topic: str, archive: str) -> None:
    """Check that no offset is in two files of an archive; the files of one flush, one per day, share a name.

    Raises:
        SourceError: two archivers wrote to it concurrently, or its offsets were reset.
    """
    spans: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name in names:
        if (rows := named_rows(topic, name.rpartition("/")[2])) is not None:
            spans[rows[0]].add(rows[1:])
    for partition, of_partition in sorted(spans.items()):
        for (first, end), (next_first, next_end) in pairwise(sorted(of_partition)):
            if next_first < end:
                raise SourceError(
                    f"archive {archive}: offsets of {partition} are in two of its files, "
                    f"{archive_name(partition, first, end)} and {archive_name(partition, next_first, next_end)}: two "
                    f"archivers wrote it, or its {OFFSETS} was put back. Delete the files that begin at or after "
                    f"{next_first}, write {next_first} for the partition in {OFFSETS}, and archive on from there"
                )
