"""A source of a new kind, in one file through public names: the code that CONTRIBUTING.md shows, under the commands."""

import re

import pytest

from headrace.cli.materialize import backfill_views, materialize_views, verify_views
from headrace.errors import ConfigError
from headrace.features import OnlineStore
from headrace.schemas.dead_letters import read as read_letters
from headrace.settings import Settings
from headrace.streams.urls import SCHEMES, sources_of_urls
from tests.turnstiles import FOLLOWED, Passage, door_use, passages, read_doors, views_of

LOG = passages(3_000)
URL = "memory-lines://log"


@pytest.fixture
def lines(repo):
    """The lines of the source that CONTRIBUTING.md shows, registered for one test."""
    before = dict(SCHEMES)
    section = (repo / "CONTRIBUTING.md").read_text().partition("## Add a source")[2]
    names: dict = {"__name__": "memory_lines"}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    yield names["LINES"]
    SCHEMES.clear()
    SCHEMES.update(before)


@pytest.mark.parametrize(("runner", "workers"), [("loop", 1), ("bytewax", 2)])
def test_a_new_scheme_is_materialized_resumed_and_verified(runner, workers, lines, redis_url, tmp_path):
    """2,000 lines and one of rubbish | 1,000 more: each counted once, the rubbish a dead letter."""
    rows = LOG.write_ndjson().encode().splitlines()
    lines["log"] = [*rows[:2_000], b"rubbish"]
    views, settings = views_of(Passage), Settings(dead_letter_dir=tmp_path)
    with OnlineStore.open(redis_url) as store:
        materialize_views(views, [URL], store, settings, runner=runner, workers=workers)
        assert read_doors(store, Passage, LOG[:2_000]).equals(door_use(LOG[:2_000]))
        lines["log"] += rows[2_000:]
        materialize_views(views, [URL], store, settings, runner=runner, workers=workers)
        assert read_doors(store, Passage, LOG).equals(door_use(LOG))
        assert all(result.ok and result.rows == LOG.height for result in verify_views(views, [URL], store, settings))
    letters = read_letters(tmp_path)
    assert letters.select("reason", "source", "offset").rows() == [("undecodable", "passages", 2_000)]


def test_a_backfill_asks_where_the_live_topic_goes_on(lines, redis_url, tmp_path):
    """As of plain files: nothing says that the lines are all of the topic."""
    lines["log"] = LOG.write_ndjson().encode().splitlines()
    settings = Settings(dead_letter_dir=tmp_path)
    with OnlineStore.open(redis_url) as store:
        with pytest.raises(ConfigError, match="give --handover FILE"):
            backfill_views(views_of(Passage), [URL], store, settings)
        done = backfill_views(views_of(Passage), [URL], store, settings, files_only=True)
        assert [row.handed_over for row in done] == [{}, {}]
        assert read_doors(store, Passage, LOG).equals(door_use(LOG))


def test_a_new_scheme_stands_beside_others(lines, tmp_path):
    """Of one event each; the name of the event says which."""
    lines["log"] = LOG.write_ndjson().encode().splitlines()
    LOG.write_parquet(tmp_path / "log.parquet")
    events = [Passage, FOLLOWED.engagement]
    with pytest.raises(ConfigError, match="write Passage=PATH for each of them"):
        sources_of_urls([URL], events)
    source = sources_of_urls([f"Passage={URL}", f"Passage={tmp_path}/log.parquet"], events)
    assert sorted(type(part).__name__ for part in source.parts()) == ["FileSource", "MemoryLines"]
    source.seek({})
    rows = 0
    while not source.exhausted:
        rows += sum(len(batch.offsets) for batch in source.poll())
    assert rows == 2 * LOG.height
