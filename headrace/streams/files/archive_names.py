"""File names of an archive, which state the offsets a file holds: how they are written and parsed.

    <folder>/<topic>/offsets.json                                           what is committed: partition -> next offset
    <folder>/<topic>/2024-05-01/<partition>.<first>-<next offset>.parquet

A file belongs to the archive once its next offset is committed; others are being written, or left from a crash.
"""

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from headrace.errors import SourceError
from headrace.redaction import shown_url

OFFSETS = "offsets.json"
OFFSET_COLUMN = "_offset"
"""Column of a file beside those of the event: the offset of each row in its partition."""

_NAME = re.compile(r"(?P<rest>.+)\.(?P<first>\d+)-(?P<next>\d+)\.parquet")


def archive_name(partition: str, first: int, next_offset: int) -> str:
    """Name of the file with the offsets [first, next_offset) of `partition`, which is "<topic>/<rest>"."""
    return f"{quote(partition.partition('/')[2], safe='')}.{first}-{next_offset}.parquet"


def named_rows(topic: str, name: str) -> tuple[str, int, int] | None:
    """(partition, first, next offset) from a file's name; None if the archiver writes no such name.

    >>> named_rows("clicks", archive_name("clicks/2", 100, 250))
    ('clicks/2', 100, 250)
    """
    match = _NAME.fullmatch(name)
    return (f"{topic}/{unquote(match['rest'])}", int(match["first"]), int(match["next"])) if match else None


def is_committed(place: str, topic: str, offsets: Mapping[str, int]) -> bool:
    """Whether the file at `place`, in the archive of `topic`, is part of it.

    Raises:
        SourceError: the archiver gives no such names.
    """
    rows = named_rows(topic, place.rpartition("/")[2])
    if rows is None:
        raise SourceError(
            f"{shown_url(place)} lies in an archive and is not named as its files are, PARTITION.FIRST-NEXT.parquet, "
            "so nobody can say which offsets it holds; move it out, or name the files by a pattern, not the folder"
        )
    partition, _, next_offset = rows
    return next_offset <= offsets.get(partition, 0)
