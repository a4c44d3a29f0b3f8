"""Where a source begins, and what its readers have read: no event may reach a reader by two ways.

A row of a log can come from its topic, from an archive of it, or from plain files that somebody exported. Offsets keep
each of these ways from being counted twice; that two of them bring the same events, only names can tell. Every way in
(command line, dataflow modules, the plain loop, an author's own loop) hands a step's positions to `Source.seek`, so the
positions carry what each reader has read, and the sources refuse there:

    read before                  asked for                          refused, unless
    files of the topic, only     the topic, from its start          the source says where it starts
    the topic                    plain files                        they are said to hold other events
    the topic up to offset n     an archive's rows                  from n on, and handed over after them
    neither                      both at once                       either is said
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace.errors import ConfigError
from headrace.streams.files.archive_names import named_rows

OFFSET_MAX = 2**63 - 1
"""Largest offset."""

Reached: TypeAlias = Mapping[str, Collection[int]]
"""Partition -> next offsets that the parts of one reader have of it."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A part of a step that counts events, such as a view.

    `known`: partition -> the furthest next offset that any part of it has read. `handover`: partition of a topic -> the
    offset from which the topic will be read once history has been. `reached`: partition -> the next offsets of all its
    parts, if they are not all the furthest.
    """

    name: str
    topics: frozenset[str]
    known: Mapping[str, int]
    handover: Mapping[str, int] = field(default_factory=dict)
    reached: Reached = field(default_factory=dict)

    def of_topic(self, topic: str) -> tuple[list[str], list[str]]:
        """The known partitions of `topic`, sorted: those of the topic itself, and those of files."""
        names = sorted(name for name in self.known if name.startswith(f"{topic}/"))
        live = [name for name in names if is_live(name, topic)]
        return live, [name for name in names if not is_live(name, topic)]


def positions_of(name: str, positions: Mapping[str, int]) -> "Positions":
    """Positions of a step with one reader, which has read exactly these."""
    topics = frozenset(partition.partition("/")[0] for partition in positions)
    return Positions(positions, [Reader(name, topics, positions)])


class Positions(dict[str, int]):
    """Partition -> next offset that every reader lacks, and the readers themselves."""

    def __init__(self, positions: Mapping[str, int] | None = None, readers: Iterable[Reader] = ()) -> None:
        super().__init__(positions or {})
        self.readers = tuple(readers)

    @property
    def known(self) -> dict[str, int]:
        """All partitions that any reader has read, with the furthest next offset."""
        furthest = dict(self)
        for reader in self.readers:
            for name, offset in reader.known.items():
                furthest[name] = max(furthest.get(name, 0), offset)
        return furthest


def least_positions(positions: Iterable[Mapping[str, int]]) -> Positions:
    """Where to begin so that every reader gets what it lacks: the least offset of each partition that all of them know.

    A partition that one of them has never seen must be read from its start, so it is left out.

    >>> least_positions([{"a/0": 5, "a/1": 7}, {"a/0": 3}])
    {'a/0': 3}
    """
    asked = list(positions)
    known = set.intersection(*(set(each) for each in asked)) if asked else set()
    least = {partition: min(each[partition] for each in asked) for partition in sorted(known)}
    return Positions(least, [reader for each in asked for reader in _readers(each)])


def is_live(partition: str, topic: str) -> bool:
    """Whether a partition is the topic's own, "<topic>/<number>", not a file's."""
    return partition.removeprefix(f"{topic}/").isdecimal()


def refuse_topic_of_files(topics: Iterable[str], positions: Mapping[str, int]) -> None:
    """For a source that would read topics from their start, because nobody has said where to begin.

    Raises:
        ConfigError: a reader was filled from files of a topic and has never read the topic itself.
    """
    for reader in _readers(positions):
        for topic in reader.topics.intersection(topics):
            live, files = reader.of_topic(topic)
            if files and not live:
                raise ConfigError(
                    f"{reader.name} was filled from files ({files[0]}, {len(files)} in all) and has never read topic "
                    f"{topic!r}: from its start, events of the files would be counted again. Say where it goes on, "
                    "kafka://...?start=<offset, time or latest>, in Python KafkaSource(..., start=...), or "
                    "start=earliest if it holds none of them"
                )


def refuse_files_of_topic(topic: str, partitions: Sequence[str], positions: Mapping[str, int]) -> None:
    """For a source of files, `partitions`, of which nobody has said that they hold other events than their topic.

    Raises:
        ConfigError: a reader has read the topic itself, and would count what of it is in the files again.
    """
    for reader in _readers(positions):
        live, _ = reader.of_topic(topic) if topic in reader.topics else ([], [])
        for name in partitions if live else ():
            if name not in reader.known and not _follows(name, topic, reader):
                raise ConfigError(
                    f"{reader.name} has read topic {topic!r} ({live[0]} up to offset {reader.known[live[0]]}): what of "
                    f"it is in file {name} would be counted again. Build the view anew from files with `headrace "
                    "backfill` (a changed view, or another namespace), or say that the files hold other events: "
                    "--files-beside-topic, in Python FileSource(..., beside_topic=True)"
                )


def refuse_both(topics: Iterable[str], positions: Mapping[str, int]) -> None:
    """For sources that read files and topics from their start side by side, without a word on how they differ.

    Raises:
        ConfigError: a reader would get the events of a topic from both.
    """
    for reader in _readers(positions):
        for topic in reader.topics.intersection(topics):
            if not reader.of_topic(topic)[0]:
                raise ConfigError(
                    f"{reader.name}: files and topic {topic!r} are read side by side, and from its start the topic "
                    "holds, as a rule, what the files hold: each event would be counted twice. Backfill from the files "
                    "first, say where the topic goes on (start=...), or that they differ (--files-beside-topic)"
                )


def reached_of(positions: Mapping[str, int]) -> list[Reached]:
    """What each reader of the positions has read of any partition; of plain positions, what they say."""
    plain = {name: [offset] for name, offset in positions.items()}
    readers = _readers(positions)
    return [{name: [at] for name, at in each.known.items()} | {**each.reached} for each in readers] or [plain]


def _readers(positions: Mapping[str, int]) -> tuple[Reader, ...]:
    return positions.readers if isinstance(positions, Positions) else ()


def _follows(name: str, topic: str, reader: Reader) -> bool:
    """Whether a file of an archive begins where the reader has read the topic, and the topic goes on behind it."""
    rows = named_rows(topic, name.rpartition("/")[2])
    if rows is None:
        return False
    live, first, next_offset = rows
    return first >= reader.known.get(live, 0) and next_offset <= reader.handover.get(live, 0)
