"""Whether a log goes back to where the records of a store begin; if not, nothing of them can be compared with it.

    topic   0 ...... 100 ......... 300 ........... 900
    store             |------------ applied --------|      begins at 100, by its fences
    log                             |- - - - - - - - - -   begins at 300: rows 100 to 299 are in the records only

A row that the log lacks may be of any entity and any time, so neither a difference nor an equality would tell anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from headrace.features.store.fences import Fence
from headrace.schemas import spec_of
from headrace.streams.files.archive_names import named_rows
from headrace.streams.positions import is_live
from headrace.streams.source import EventBatch


@dataclass(slots=True)
class LogStart:
    """Where a log begins.

    `partitions`: those that were read. `seen`: those that had rows; for archived files also their topic's. `firsts`:
    partition -> (its least offset, event time of that row in microseconds).
    """

    partitions: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    firsts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, part: EventBatch) -> None:
        """Take a batch of the log into account."""
        self.partitions.add(part.partition)
        if not part.frame.height:
            return
        times_us = part.frame[spec_of(part.event).time].to_physical()
        places = [(part.partition, part.offsets)]
        if part.origin is not None:
            places.append((part.origin.partition, part.origin.offsets))
        for partition, offsets in places:
            index = int(offsets.argmin())
            is_range = part.origin is not None and partition == part.origin.partition and part.origin.first is not None
            offset = part.origin.first if part.origin is not None and is_range else int(offsets[index])
            assert offset is not None
            first = (offset, int(times_us[index]))
            self.firsts[partition] = min(first, self.firsts.get(partition, first))
            self.seen.add(partition)


@dataclass(frozen=True, slots=True)
class Applied:
    """What the records of a view were made from.

    `reached`: partition -> furthest next offset of any shard. `starts`: partition of a topic -> least offset that a
    shard has applied, where the store knows it: not after a hand-over, and not if an earlier release wrote the store.
    """

    topics: Sequence[str]
    reached: Mapping[str, int]
    starts: Mapping[str, int]

    def lacking(self, log: LogStart) -> str | None:
        """Describe rows that have been applied and that `log` does not go back to; None: there are none."""
        return next(filter(None, (self._lacking_of(topic, log) for topic in self.topics)), None)

    def _lacking_of(self, topic: str, log: LogStart) -> str | None:
        live = sorted(name for name in self.reached if is_live(name, topic))
        files = sorted(
            name for name, end in self.reached.items() if end and name.startswith(f"{topic}/") and name not in live
        )
        archived = {name: named_rows(topic, name.rpartition("/")[2]) for name in files}
        needed: dict[str, int] = {}
        for rows in filter(None, archived.values()):
            needed[rows[0]] = min(rows[1], needed.get(rows[0], rows[1]))
        for name in live:
            start = self.starts.get(name, needed.get(name, 0))
            if start < self.reached[name]:
                needed[name] = min(start, needed.get(name, start))
        if all(name in log.partitions for name in files):
            needed = {name: start for name, start in needed.items() if name in live}
        for name, start in sorted(needed.items()):
            if (first := log.firsts.get(name)) is None:
                return f"the log has nothing of {name}, and the store has applied it {self._from(name, start)}"
            if first[0] > start:
                moment = datetime.fromtimestamp(first[1] / 1e6, UTC).isoformat(timespec="seconds")
                return (
                    f"the log of {name} begins at offset {first[0]:,} (with an event of {moment}), and the store has "
                    f"applied it {self._from(name, start)}"
                )
        firsts = [first for name, (first, _) in log.firsts.items() if is_live(name, topic)]
        for name in files:
            if name not in log.partitions and archived[name] is None and (not firsts or max(firsts)):
                return f"the log lacks file {name}, which the store has applied"
        return None

    def _from(self, name: str, start: int) -> str:
        if start or name in self.starts:
            return f"from offset {start:,} on"
        return f"up to offset {self.reached.get(name, 0):,} and does not know from where"


def starts_of(fences: Mapping[int, Fence]) -> dict[str, NDArray[np.int64]]:
    """Partition -> first offset that each of all shards has applied (shards,); -1 where it is not known."""
    starts: dict[str, NDArray[np.int64]] = {}
    for shard, fence in fences.items():
        for name, start in fence.starts.items():
            starts.setdefault(name, np.full(len(fences), -1))[shard] = start
    return starts
