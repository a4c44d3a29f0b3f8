"""Events ahead of the clock: backfill and verify allow what the live flow allows, and nothing hangs on when.

now ----|---- HEADRACE_FUTURE_S ----|
        | counts, live and replayed | a dead letter live; good once the clock has passed it
"""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from headrace.cli.materialize import backfill_views, materialize_views, verify_views
from headrace.clock import FixedClock, wall_us
from headrace.features import Count, FeatureView, OnlineStore, plan_of
from headrace.history.verify import verify_all
from headrace.pipelines import Intake, Materializer, TopicWriter, create_topics, loop
from headrace.settings import Settings
from headrace.streams.urls import sources_of_urls
from tests.turnstiles import Shelf, passage_of

HOUR_US = 3_600_000_000


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, 4) as opened:
        yield opened


@pytest.fixture
def event(broker, topic):
    """Its topic holds one event of now, one a quarter and one half of an hour ahead."""
    event = passage_of(topic)
    create_topics(broker, {topic: 1})
    times = [datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (0, 15, 30)]
    rows = {"passage_id": list("abc"), "at": times, "door": [1, 2, 3], "way": ["in"] * 3, "seconds": [1.0] * 3}
    writer = TopicWriter(broker, event)
    writer.write(pl.DataFrame(rows))
    writer.close()
    return event


def view_of(event):
    class Doors(FeatureView, source=event, entity="door"):
        passages = Count(windows="lifetime")

    return Doors


@pytest.mark.parametrize(("future_s", "doors"), [(60, 1), (1_200, 2), (3_600, 3)])
@pytest.mark.parametrize("fill", [materialize_views, backfill_views])
def test_the_allowance_is_that_of_the_live_flow(broker, event, store, tmp_path, fill, future_s, doors):
    """Backfill and verify took ten minutes for it, whatever was set."""
    view, settings = view_of(event), Settings(dead_letter_dir=tmp_path, future_s=future_s)
    fill([view], [f"kafka://{broker}"], store, settings, **({"until_end": True} if fill is materialize_views else {}))
    assert sum(1 for _ in store.scan(plan_of(view))) == doors
    [result] = verify_views([view], [f"kafka://{broker}"], store, settings)
    assert (result.ok, result.rows, result.entities) == (True, doors, doors)


def test_what_the_clock_has_passed_since_is_no_difference(broker, event, store):
    """Live it was a dead letter; an hour later it would be good, and its entity is left out."""
    view, source = view_of(event), sources_of_urls([f"kafka://{broker}"], [event], until_end=True)
    letters = Shelf()
    loop.run(source, Intake([event], dead_letters=letters), [Materializer([view], store)])
    assert [letter.reason for letter in letters.letters] == ["future"] * 2
    later = Intake([event], dead_letters=Shelf(), clock=FixedClock(wall_us() + HOUR_US))
    log = sources_of_urls([f"kafka://{broker}"], [event], until_end=True)
    log.seek({})
    parts = []
    while not log.exhausted:
        parts += map(later.decode, log.poll())
    log.close()
    [result] = verify_all([view], parts, store)
    assert (result.ok, result.rows, result.entities, result.ahead) == (True, 3, 3, 2)
    [result] = verify_all([view], parts, store, future_us=HOUR_US)
    assert (result.ok, result.mismatches, result.ahead) == (False, 2, 0)
