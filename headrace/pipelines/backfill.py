"""Backfill: build a view, or a new version of a changed view, from history; the live flow continues where it ends.

    history  |--------- files of the archive ---------|            offsets of the live topic beside the records,
    topic          ... 17 18 19 20 21 22 23 24 25 26 27 28 ...     so that row 24 is counted here and 25 there
                                            ^ hand-over: 25

The new version is written beside the old version, which is served until the switch at the end. An exact hand-over needs
the offsets at which history ends: a topic has them, an archive has committed offsets, and for plain files the caller
gives them. Progress is in the fences of the store: after a crash, another call with equal arguments resumes there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from headrace.features.store import OnlineStore
from headrace.features.view import FeatureView, ViewPlan, plan_of, plans_of
from headrace.pipelines import loop
from headrace.pipelines.materializer import FlushSummary, Materializer
from headrace.pipelines.shard import ShardSet
from headrace.schemas import DeadLetters
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.streams.intake import Intake
from headrace.streams.source import Source

FLUSH_S = 5.0
"""Flush interval in seconds; long, since no reader waits for fresh values."""
DIRTY_MAX = 1_000_000

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
    registry: SchemaRegistry | None = None,
    on_flush: Callable[[FlushSummary], None] = lambda _summary: None,
) -> list[Backfilled]:
    """Build new versions of `views` from `history`, a source that ends, and switch readers to them.

    `handover`: partition of the live topic -> first offset that history does not hold. A view is skipped if its version
    is active and knows these partitions already, since the live flow keeps it up to date.

    Raises:
        FencedError: another engine writes the new version.
        StoreUnavailableError: Redis does not answer at the start or the end.
    """
    ends = dict(handover or {})
    plans = plans_of(views, "backfill")
    before = {plan.name: store.active(plan.name) for plan in plans}
    waiting = [view for view, plan in zip(views, plans, strict=True) if not _is_done(plan, store, ends)]
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
        loop.run(history, Intake(step.events, dead_letters=dead_letters, registry=registry), [step], out=on_flush)
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


def _is_done(plan: ViewPlan, store: OnlineStore, handover: Mapping[str, int]) -> bool:
    """Whether the version is active and every shard knows the live partitions, so was handed over before."""
    if not handover or store.active(plan.name) != plan.fingerprint:
        return False
    fences = store.fences(plan, range(store.shards))
    return all(partition in fence.offsets for fence in fences.values() for partition in handover)
