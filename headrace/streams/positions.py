"""Start positions of a source and the offsets its readers have read, so that no reader gets an event twice.

A row of a log can be read from its topic, from an archive of it, or from exported files. Within each of these, offsets
prevent a row from being counted twice; only names can tell that two of them contain the same events. Every entry point
(command line, dataflow modules, the plain loop, a user's own loop) passes the positions of its steps to `Source.seek`.
So positions contain what each reader has read, and `seek` raises an error in these cases:

    read before                  to be read                         error, unless
    files of the topic           partitions of the topic, from      `start` is given, or a hand-over named them all
                                 their start
    the topic                    plain files                        the user states that they hold other events
    the topic up to offset n     an archive's rows                  they begin at n, and the topic follows after them
    neither                      both at once                       `start` is given, or the user states as above
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace.errors import ConfigError
from headrace.streams.files.archive_names import named_rows

OFFSET_MAX = 2**63 - 1
"""Largest offset."""

Reached: TypeAlias = Mapping[str, Collection[int]]
"""Partition -> next offsets of the parts of one reader, one or several."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A part of a step that counts events, such as a view.

    `known`: partition -> the furthest next offset of any part. `handover`: partition of a topic -> the offset from
    which the topic is read once history has been read. `reached`: partition -> the next offsets of all parts, if they
    differ. `unseen`: known partitions that not all parts have read.
    """

    name: str
    topics: frozenset[str]
    known: Mapping[str, int]
    handover: Mapping[str, int] = field(default_factory=dict)
    reached: Reached = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()

    def of_topic(self, topic: str) -> tuple[list[str], list[str]]:
        """Known partitions of `topic`, each list sorted: (the topic's own, those of files)."""
        names = sorted(name for name in self.known if name.startswith(f"{topic}/"))
        live = [name for name in names if is_live(name, topic)]
        return live, [name for name in names if not is_live(name, topic)]


def positions_of(name: str, positions: Mapping[str, int]) -> "Positions":
    """Positions of a step with a single reader, which has read exactly `positions`."""
    topics = frozenset(partition.partition("/")[0] for partition in positions)
    return Positions(positions, [Reader(name, topics, positions)])


class Positions(dict[str, int]):
    """A mapping from partitions to the next offset to read, so that no reader misses a row, and the readers."""

    def __init__(self, positions: Mapping[str, int] | None = None, readers: Iterable[Reader] = ()) -> None:
        super().__init__(positions or {})
        self.readers = tuple(readers)


def least_positions(positions: Iterable[Mapping[str, int]]) -> Positions:
    """The positions at which no step misses a row: the least offset of each partition that all steps know.

    A partition that a step has never read must be read from its start, so it is not in the result.

    >>> least_positions([{"a/0": 5, "a/1": 7}, {"a/0": 3}])
    {'a/0': 3}
    """
    of_steps = list(positions)
    known = set.intersection(*(set(each) for each in of_steps)) if of_steps else set()
    least = {partition: min(each[partition] for each in of_steps) for partition in sorted(known)}
    return Positions(least, [reader for each in of_steps for reader in _readers(each)])


def is_live(partition: str, topic: str) -> bool:
    """Whether a partition belongs to the topic itself, "<topic>/<number>", not to a file."""
    return partition.removeprefix(f"{topic}/").isdecimal()


def refuse_topic_of_files(
    topics: Iterable[str], positions: Mapping[str, int], partitions: Collection[str] = ()
) -> None:
    """Check a source that would read `partitions` of topics from their start, with neither offset nor start given.

    Partitions of which an archive has no file may be read from their start, since the archive has no rows of them.

    Raises:
        ConfigError: a reader was filled from files of a topic, and does not know at which offset the topic, or one of
            its partitions, continues.
    """
    for reader in _readers(positions):
        for topic in reader.topics.intersection(topics):
            live, files = reader.of_topic(topic)
            if files and not live:
                raise ConfigError(
                    f"{reader.name} was filled from files ({files[0]}, {len(files)} in all) and has never read topic "
                    f"{topic!r}: from its start, events of the files would be counted again. Say where it goes on, "
                    "kafka://...?start=<offset, time of append or latest>, in Python KafkaSource(..., start=...), "
                    "or start=earliest if it holds none of them"
                )
            asked = {name for name in {*partitions, *live} if is_live(name, topic)}
            if lacking := sorted((asked - {*live} | asked & reader.unseen) & _held_by(files, topic, asked)):
                raise ConfigError(
                    f"{reader.name} was filled from files ({files[0]}, {len(files)} in all) and does not know where "
                    f"{lacking[0]} goes on ({len(lacking)} of the topic's partitions): from its start, events of the "
                    "files would be counted again. Run the same backfill again, with a hand-over that names every "
                    "partition (0: the files hold nothing of it), or say kafka://...?start=<offset, time or latest>, "
                    "in Python KafkaSource(..., start=...); start=earliest if it was added since"
                )


def _held_by(files: Iterable[str], topic: str, partitions: Collection[str]) -> set[str]:
    """Partitions of a topic whose events may be in files: archived files name their partition, plain files do not."""
    rows = [named_rows(topic, name.rpartition("/")[2]) for name in files]
    return {*partitions} if None in rows else {each[0] for each in rows if each is not None}


def refuse_files_of_topic(topic: str, partitions: Sequence[str], positions: Mapping[str, int]) -> None:
    """Check files, given as `partitions`, that may hold events of their topic.

    Raises:
        ConfigError: a reader has read the topic itself, and would count events of the files again.
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
    """Check topics that are read from their start together with files of them.

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


def partly_read(partition: str, positions: Mapping[str, int]) -> str | None:
    """A reader that knows where a partition goes on in some of its parts and not in others; None: there is none.

    Parts may be readers of one name, as those of several workers are.
    """
    knowing: dict[str, set[bool]] = {}
    for reader in _readers(positions):
        if partition.rpartition("/")[0] in reader.topics:
            in_all, in_some = partition not in reader.unseen, partition in reader.known
            knowing.setdefault(reader.name, set()).update({in_some, in_some and in_all})
    return next((name for name, known in knowing.items() if len(known) > 1), None)


def reached_of(positions: Mapping[str, int]) -> list[Reached]:
    """The offsets that each reader of the positions has reached; plain positions count as one reader."""
    plain = {name: [offset] for name, offset in positions.items()}
    readers = _readers(positions)
    return [{name: [offset] for name, offset in each.known.items()} | {**each.reached} for each in readers] or [plain]


def _readers(positions: Mapping[str, int]) -> tuple[Reader, ...]:
    return positions.readers if isinstance(positions, Positions) else ()


def _follows(name: str, topic: str, reader: Reader) -> bool:
    """Whether an archived file begins at or after the reader's offset, and ends before the topic is resumed."""
    rows = named_rows(topic, name.rpartition("/")[2])
    if rows is None:
        return False
    live, first, next_offset = rows
    return first >= reader.known.get(live, 0) and next_offset <= reader.handover.get(live, 0)
