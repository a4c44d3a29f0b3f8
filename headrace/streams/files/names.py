"""Partition names of files: the path below the pattern, and a hash of the content.

    clicks/a.parquet@5f3a9c01           size and both ends, since an added row may take the number of another
    clicks/a.csv@5f3a9c0177d0e4b2       size, both ends and all bytes, for files without a footer
    clicks/a.jsonl@0f9a2c11             the first line, since lines may be added at the end (see `lines`)
    clicks/2024-05-01/0.0-500.parquet   a file of an archive: never changed

Readers know a file by the name under which they first read it. By another pattern the file has another path, so it is
recognised as the known file if the content is equal and the known path is the end of its path:

    known        part-0.parquet@5f3a9c01          from logs/01/*.parquet
    found     01/part-0.parquet@5f3a9c01          by logs/*/*.parquet: the same file, which keeps its name
    found     02/part-0.parquet@aa17e300          another file

JSON lines are often rotated: `app.jsonl` becomes `app-1.jsonl`, and a new `app.jsonl` begins. A file of lines with a
new name is recognised as the known file if it has every line that was read from that file. If a file with the known
name and the same first line is in the same folder, the file is a copy instead.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import structlog

from headrace.errors import SourceError
from headrace.streams.files.archive_names import named_rows
from headrace.streams.files.finder import EventFile, format_suffix
from headrace.streams.files.line_reader import iter_lines
from headrace.streams.files.lines import is_blank, iter_blocks
from headrace.streams.files.reading import FORMATS, is_lines, reading
from headrace.streams.positions import Reached

_CONTENT = re.compile(r"@([0-9a-f]{8}(?:[0-9a-f]{8})?)$")
_HEAD_BYTES = 65_536
_NO_LINE = f"{0:08x}"  # content of a file without any line

log = structlog.get_logger(__name__)


def partition_of(file: EventFile, topic: str, *, is_sorted: bool) -> str:
    """The partition name of a file. `is_sorted`: rows are numbered in time order, not in file order.

    Raises:
        SourceError: the file cannot be read.
    """
    if file.is_archived:
        return f"{topic}/{file.name}"
    if is_lines(file):
        return f"{topic}/{file.name}@{_head(file)}"
    content = file.fingerprint()
    return f"{topic}/{file.name}@{content if is_sorted else f'{zlib.crc32(content.encode()):08x}'}"


def shown_path(partition: str) -> str:
    """A file's path for a message: its partition name without the topic and the content hash."""
    return _CONTENT.sub("", partition.partition("/")[2])


def recognise(
    files: Mapping[str, EventFile], topic: str, readers: Sequence[Reached], taken: Collection[str] = ()
) -> dict[str, EventFile]:
    """Map files by the names under which `readers` know them, new files by their own names, in the order given.

    `taken` are names of other files.

    Raises:
        SourceError: a file has changed since a reader read it, or readers know one file by two names.
    """
    known = _Names(readers, topic)
    free = known.partitions - files.keys() - {*taken}
    names = {partition: partition for partition in files}
    for is_compared in (True, False):  # files that still have all lines that were read come first
        for partition, file in files.items():
            if partition not in known.partitions and names[partition] == partition:
                same = known.same(file, partition, free, is_compared=is_compared)
                names[partition] = same[0] if same else partition
                free = free - {names[partition]}
    for partition, file in files.items():
        if names[partition] not in known.partitions:
            names[partition] = known.renamed(file, partition, free) or partition
            free = free - {names[partition]}
    for partition, file in files.items():
        if names[partition] not in known.partitions:
            _look_at_others(file, partition, known.ends(file, free))
        for reader in readers:
            lacks = names[partition] not in reader and free & reader.keys()
            other = known.same(file, partition, lacks, is_compared=False) if lacks else []
            if other:
                raise SourceError(
                    f"file {file.url} was read before as {names[partition]} and as {other[0]}, by different views: "
                    "feed these views one at a time, each by the pattern it was filled with"
                )
    return {names[partition]: file for partition, file in files.items()}


@dataclass(frozen=True, slots=True)
class _Name:
    """A parsed partition name, and the next offsets of its readers.

    `content` is None if the name has no content hash.
    """

    partition: str
    path: str
    content: str | None
    offsets: frozenset[int] = frozenset()

    @classmethod
    def of(cls, partition: str, topic: str, offsets: Collection[int] = ()) -> "_Name | None":
        """Parse the partition name of a file; None if it is not a file's, for instance a broker's."""
        content = _CONTENT.search(partition)
        path = str(PurePosixPath(_CONTENT.sub("", partition).removeprefix(f"{topic}/")))
        if not partition.startswith(f"{topic}/") or format_suffix(path) not in FORMATS:
            return None
        return cls(partition, path, content[1] if content else None, frozenset(offsets))


class _Names:
    """The names under which files of a topic are known, and lookups of the names of a file."""

    def __init__(self, readers: Sequence[Reached], topic: str) -> None:
        self._topic = topic
        offsets: dict[str, set[int]] = defaultdict(set)
        for reader in readers:
            for partition, positions in reader.items():
                offsets[partition] |= {*positions}
        self._by_last: dict[str, list[_Name]] = defaultdict(list)
        self.partitions: set[str] = set()
        for partition, positions in offsets.items():
            name = _Name.of(partition, topic, positions)
            if name is not None and any(positions):  # nothing was read from the others
                self._by_last[PurePosixPath(name.path).name].append(name)
                self.partitions.add(partition)

    def ends(self, file: EventFile, among: AbstractSet[str]) -> list[_Name]:
        """Names whose path is the file's path or the end of it; longest first."""
        places = {f"/{file.name}", f"/{file.location}", f"/{Path(file.path).absolute()}"}
        last = {PurePosixPath(place).name for place in places}
        names = [name for each in last for name in self._by_last.get(each, ()) if name.partition in among]
        names = [name for name in names if any(place.endswith(f"/{name.path}") for place in places)]
        return sorted(names, key=lambda name: -len(name.path))

    def same(self, file: EventFile, partition: str, among: AbstractSet[str], *, is_compared: bool) -> list[str]:
        """Partitions in `among` that are this file, by their path and content.

        Files of lines are compared by their first line only or, with `is_compared`, by all lines that were read.
        """
        own = _Name.of(partition, self._topic)
        assert own is not None
        same = [name for name in self.ends(file, among) if _holds_same(file, own.content, name, self._topic)]
        if is_lines(file) and is_compared:
            same = [name for name in same if _still_holds(file, name.offsets)]
        return [name.partition for name in same]

    def renamed(self, file: EventFile, partition: str, among: AbstractSet[str]) -> str | None:
        """The partition in `among` that is this file of lines under an earlier name; None if it is new, or a copy."""
        if not is_lines(file):
            return None
        as_new = _Name.of(partition, self._topic)
        assert as_new is not None
        names = (name for names in self._by_last.values() for name in names if name.partition in among)
        alike = [name for name in names if name.content == as_new.content != _NO_LINE]
        # The partition with most lines read comes first, since comparing more lines is more reliable.
        for name in sorted(alike, key=lambda name: -max(name.offsets)):
            if not _lies_beside(file, name) and _still_holds(file, name.offsets):
                log.warning("file_renamed", file=file.url, read_before=name.partition)
                return name.partition
        return None


def _lies_beside(file: EventFile, name: _Name) -> bool:
    """Whether a file with the known name and the same first line is still in the folder; for local files only."""
    if not file.is_local:
        return False
    path = Path(file.path).with_name(PurePosixPath(name.path).name)
    return path.is_file() and _head(replace(file, path=str(path), name=path.name)) == name.content


def _holds_same(file: EventFile, content: str | None, name: _Name, topic: str) -> bool:
    if is_lines(file):
        return content == name.content
    if name.content is None:  # a file of an archive, which never changes
        return named_rows(topic, PurePosixPath(name.path).name) is not None and "/" in name.path
    if file.is_archived:
        content = file.fingerprint()
    return content is not None and content[: len(name.content)] == name.content


def _still_holds(file: EventFile, positions: Collection[int]) -> bool:
    try:
        for _ in iter_lines(file, max(positions), positions):
            pass
    except SourceError:
        return False
    return True


def _look_at_others(file: EventFile, partition: str, others: Sequence[_Name]) -> None:
    """Report files of the same name that were read before with other content: log a warning, or raise.

    Raises:
        SourceError: one had the same path, and its rows cannot be distinguished from those in the file now.
    """
    for name in others:
        if name.path != file.name:
            log.warning("file_of_the_same_name_was_read", file=file.url, read_before=name.partition, reads_as=partition)
        elif not is_lines(file):
            raise SourceError(
                f"file {file.url} has changed since {max(name.offsets):,} of its rows were read: in the order of time "
                "they have other numbers now, so nobody can say which are new. Put new events into a new file (JSON "
                "lines may grow), or start a fresh store. If it is another file of the same name, reach both by one "
                f"pattern, as */{PurePosixPath(file.name).name}, so that their names differ"
            )
        elif name.content is None:
            raise SourceError(
                f"file {file.url} was read before by a version that knew files of JSON lines by their name alone, as "
                f"{name.partition}: nobody can say which lines are new. Start a fresh store, or backfill the views anew"
            )
        else:
            log.warning("file_begun_anew", file=file.url, read_before=name.partition, reads_as=partition)


def _head(file: EventFile) -> str:
    """Hash of the first line that is not blank: 8 hex digits. A file is not read until this line is complete."""
    with reading(file), file.opened() as stream:
        for block in iter_blocks(stream, _HEAD_BYTES):
            for line in block.lines:
                if not is_blank(line):
                    return f"{zlib.crc32(line.strip()):08x}"
    return _NO_LINE
