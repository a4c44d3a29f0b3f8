"""Backfill: build a view, or a new version of a changed view, from history; the live flow continues where it ends.

    history  |--------- files of the archive ---------|            offsets of the live topic beside the records,
    topic          ... 17 18 19 20 21 22 23 24 25 26 27 28 ...     so that row 24 is counted here and 25 there
                                            ^ hand-over: 25

The new version is written beside the old version, which is served until the switch at the end. An exact hand-over needs
the offsets at which history ends: a topic has them, an archive has committed offsets, and for plain files the caller
gives them. Without them, a version that has read the topic is not replaced: the new one would lack the topic's events,
and no flow would bring them. Progress is in the fences of the store: after a crash, another call with equal arguments
resumes there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import orjson
import structlog

from headrace.clock import Clock
from headrace.errors import ConfigError
from headrace.features.store import OnlineStore
from headrace.features.view import FeatureView, ViewPlan, plan_of, plans_of, version_of
from headrace.pipelines import loop
from headrace.pipelines.materializer import FlushSummary, Materializer
from headrace.pipelines.shard import ShardSet
from headrace.schemas import DeadLetters, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.quality import FUTURE_US
from headrace.streams.intake import Intake
from headrace.streams.positions import is_live
from headrace.streams.source import Source

FLUSH_S = 5.0
"""Flush interval in seconds; long, since no reader waits for fresh values."""
DIRTY_MAX = 1_000_000
SHOWN_MAX = 64
"""Partitions that an error shows with their offsets."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backfilled:
    """Result of a backfill for one view. `before` and `after` are the active versions before and after it."""

    view: str
    before: str | None
    after: str
    records: int
    handed_over: dict[str, int]


def backfill(
    views: Sequence[type[FeatureView]],
    history: Source,
    store: OnlineStore,
    *,
    handover: Mapping[str, int] | None = None,
    dead_letters: DeadLetters,
    clock: Clock | None = None,
    future_us: int = FUTURE_US,
    registry: SchemaRegistry | None = None,
    on_flush: Callable[[FlushSummary], None] = lambda _summary: None,
) -> list[Backfilled]:
    """Build new versions of `views` from `history`, a source that ends, and switch readers to them.

    `handover`: partition of the live topic -> first offset that history does not hold. A view is skipped if its version
    is active and knows these partitions already, since the live flow keeps it up to date. `clock`, `future_us` and
    `registry` are those of `Intake`, as in the live flow.

    Raises:
        ConfigError: the active version of a view has read a topic that neither `history` nor `handover` names.
        FencedError: another engine writes the new version.
        StoreUnavailableError: Redis does not answer at the start or the end.
    """
    ends = dict(handover or {})
    plans = plans_of(views, "backfill")
    before = {plan.name: store.active(plan.name) for plan in plans}
    waiting = [view for view, plan in zip(views, plans, strict=True) if not _is_done(plan, store, ends)]
    for view in waiting:
        _refuse_without_topic(plan_of(view), history, store, ends)
    if waiting:
        step = Materializer(
            waiting,
            store,
            flush_s=(FLUSH_S, FLUSH_S),
            catch_up_s=FLUSH_S,
            dirty_max=DIRTY_MAX,
            dead_letters=dead_letters,
            handover=ends,
        )
        intake = Intake(step.events, dead_letters=dead_letters, clock=clock, future_us=future_us, registry=registry)
        loop.run(history, intake, [step], out=on_flush)
        if not history.exhausted:  # stopped: applied events are kept, but readers are not switched
            log.warning("backfill_stopped", views=[plan_of(view).name for view in waiting])
            return []
    hand_over(waiting, store, ends)
    for view in waiting:
        store.activate(plan_of(view))
    return [
        Backfilled(
            plan.name,
            before[plan.name],
            plan.fingerprint,
            sum(1 for _ in store.scan(plan)) if view in waiting else 0,
            ends,
        )
        for view, plan in zip(views, plans, strict=True)
    ]


def hand_over(views: Sequence[type[FeatureView]], store: OnlineStore, positions: Mapping[str, int]) -> None:
    """Mark rows before `positions` (partition -> next offset) as applied, in every shard of each view.

    Raises:
        FencedError: another engine writes the view.
        StoreUnavailableError: Redis does not answer; call again.
    """
    for view in views:
        shards = ShardSet(plan_of(view), store, range(store.shards))
        shards.start_at(positions)
        shards.flush()


def _refuse_without_topic(plan: ViewPlan, history: Source, store: OnlineStore, handover: Mapping[str, int]) -> None:
    """Check that the version that `plan` replaces has read no topic of which the new one would know nothing.

    Raises:
        ConfigError: it has read one.
    """
    active = store.active(plan.name)
    if active in {None, plan.fingerprint}:  # in the same version, readers of files and topics are told apart by offsets
        return
    read: dict[str, int] = {}
    for fence in store.fences_of(plan.name, active, range(store.shards)).values():
        for name, offset in fence.offsets.items():
            read[name] = max(offset, read.get(name, 0))
    for topic in sorted(spec_of(event).topic for event in plan.sources):
        ends = {name: read[name] for name in sorted(read) if is_live(name, topic)}
        if ends and not any(is_live(name, topic) for name in (*handover, *history.partitions())):
            shown = dict(islice(ends.items(), SHOWN_MAX))
            more = f" and {len(ends) - SHOWN_MAX} more" if len(ends) > SHOWN_MAX else ""
            raise ConfigError(
                f"view {plan.name}: its active version {version_of(active)} has read topic {topic!r}, and this history "
                "does not say where the topic goes on after it: the new version would be read in its place, without "
                "the topic's events. Backfill from the topic (kafka://HOST:PORT) or its archive, or give the next "
                "offset of each partition, --handover FILE, in Python backfill(..., handover={...}); if the history "
                f"holds all that was read, also of a log that is closed, it is {orjson.dumps(shown).decode()}{more}"
            )


def _is_done(plan: ViewPlan, store: OnlineStore, handover: Mapping[str, int]) -> bool:
    """Whether the version is active and every shard knows the live partitions, so was handed over before."""
    if not handover or store.active(plan.name) != plan.fingerprint:
        return False
    fences = store.fences(plan, range(store.shards))
    return all(partition in fence.offsets for fence in fences.values() for partition in handover)
