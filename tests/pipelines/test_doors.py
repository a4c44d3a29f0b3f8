"""Whatever guards one way into the store guards all: no event is counted by two ways, through whichever door it comes.

guards    topic after files · files after the topic · an archive after the topic · both at once · changed files ·
          another version is active
doors     command line · dataflow module (`headrace run`, `python -m bytewax.run`) · operator on Bytewax, one worker and
          two · plain loop · an author's own loop, with and without a seek · backfill
"""

import os
import subprocess

import numpy as np
import polars as pl
import pytest

from headrace.cli.materialize import backfill_views, materialize_views
from headrace.errors import ConfigError, EvictionError, LayoutError, SourceError
from headrace.features import Count, FeatureView, OnlineStore, plan_of
from headrace.pipelines import (
    Archiver,
    EventBatch,
    FileSource,
    Intake,
    Joiner,
    JoinStep,
    KafkaSource,
    Materializer,
    ShardSet,
    TopicWriter,
    create_topics,
    loop,
    run_flow,
)
from headrace.pipelines.backfill import backfill
from headrace.pipelines.flow import materialize_flow
from headrace.schemas import spec_of
from headrace.settings import Settings
from headrace.streams.positions import Positions, least_positions
from headrace.streams.source import MergedSource
from tests.forked import Forked
from tests.turnstiles import FOLLOWED, START_US, Shelf, as_batch, drain, passage_of, passages, views_of

LOG = passages(600)


def by_loop(source, event, store):
    loop.run(source, Intake((event,), dead_letters=Shelf()), [Materializer(views_of(event)[:1], store)])


def by_bytewax(workers):
    def run(source, event, store):
        flow = materialize_flow(source, views_of(event)[:1], store, {"dead_letters": Shelf()})
        run_flow(flow, runner="bytewax", workers=workers)

    return run


def by_own_loop(*, seeks):
    def run(source, event, store):
        step, intake = Materializer(views_of(event)[:1], store), Intake((event,), dead_letters=Shelf())
        if seeks:
            source.seek(step.positions())
        while not source.exhausted:
            for batch in source.poll():
                step.apply(intake.decode(batch))
        step.finish()

    return run


def by_backfill(source, event, store):
    backfill(views_of(event)[:1], source, store, dead_letters=Shelf())


DOORS = {
    "loop": by_loop,
    "bytewax-1": by_bytewax(1),
    "bytewax-2": by_bytewax(2),
    "own loop": by_own_loop(seeks=True),
    "own loop without a seek": by_own_loop(seeks=False),
    "backfill": by_backfill,
}
through_every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
SEEKING = {name: door for name, door in DOORS.items() if name != "own loop without a seek"}
through_seeking_doors = pytest.mark.parametrize("door", SEEKING.values(), ids=SEEKING)
"""In the other a source is not told what was read, so it cannot know what changed, and sources meet one by one."""


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=4) as opened:
        yield opened


@pytest.fixture
def event(broker, topic):
    """An event whose topic holds the log."""
    event = passage_of(topic)
    create_topics(broker, {topic: 2})
    writer = TopicWriter(broker, event)
    writer.write(LOG)
    writer.close()
    return event


def counted(store, event):
    view = views_of(event)[0]
    return store.read(view, LOG["door"].unique().to_list(), START_US + 10**12)["passages_lifetime"].sum()


def topic_of(broker, event, **options):
    return KafkaSource(broker, [event], until_end=True, **options)


@through_every_door
def test_a_topic_is_not_read_from_its_start_after_its_files(door, broker, event, store, tmp_path):
    """Where to go on must be said, and then each event is counted once."""
    LOG.write_parquet(tmp_path / "log.parquet")
    by_loop(FileSource(tmp_path / "log.parquet", event), event, store)
    with pytest.raises(ConfigError, match=r"door_use was filled from files \(.*log.parquet@.* 1 in all\) .*start="):
        door(topic_of(broker, event), event, store)
    assert counted(store, event) == LOG.height
    if door is not DOORS["own loop without a seek"]:
        door(topic_of(broker, event, start="latest"), event, store)
        assert counted(store, event) == LOG.height


@through_seeking_doors
@pytest.mark.parametrize("lacks", ["a partition", "a partition in one shard"])
def test_a_topic_is_not_read_where_a_hand_over_left_a_partition_out(door, lacks, broker, event, store, tmp_path):
    """A hand-over that names the first partition of two, or one that ended between the shards of a cluster."""
    LOG.write_parquet(tmp_path / "log.parquet")
    by_loop(FileSource(tmp_path / "log.parquet", event), event, store)
    plan, first, second = plan_of(views_of(event)[0]), f"{spec_of(event).topic}/0", f"{spec_of(event).topic}/1"
    ends = {batch.partition: batch.next_offset for batch in drain(topic_of(broker, event))}
    for shards, names in ((range(4), [first]), (range(3), [second] if lacks == "a partition in one shard" else [])):
        begun = ShardSet(plan, store, shards)
        begun.start_at({name: ends[name] for name in names})
        begun.flush()
    with pytest.raises(ConfigError, match=rf"does not know where {second} goes on \(1 of .* every partition"):
        door(topic_of(broker, event), event, store)
    assert counted(store, event) == LOG.height
    by_loop(topic_of(broker, event, start="latest"), event, store)
    door(topic_of(broker, event), event, store)
    assert counted(store, event) == LOG.height


def test_an_interrupted_hand_over_is_ended_by_the_same_backfill(broker, event, store, tmp_path):
    """Some shards know where the topic goes on, the others do not: what the error says to do is right."""
    archive = tmp_path / "archive"
    loop.run(topic_of(broker, event), Intake((event,), dead_letters=Shelf()), [Archiver(archive)])
    files = FileSource(archive, event)
    by_loop(files, event, store)
    ends, plan = files.ends(), plan_of(views_of(event)[0])
    begun = ShardSet(plan, store, [0, 2])
    begun.start_at(ends)
    begun.flush()
    with pytest.raises(ConfigError, match="Run the same backfill again"):
        by_loop(topic_of(broker, event), event, store)
    backfill(views_of(event)[:1], FileSource(archive, event), store, handover=ends, dead_letters=Shelf())
    by_loop(topic_of(broker, event), event, store)
    assert counted(store, event) == LOG.height


def test_partitions_that_an_archive_holds_nothing_of_are_read_from_their_start(broker, event, store, tmp_path):
    """A topic that grew after the archive had ended: its new partition needs no word."""
    archive, topic = tmp_path / "archive", spec_of(event).topic
    half = topic_of(broker, event)
    half.seek({})
    archiver, intake = Archiver(archive), Intake((event,), dead_letters=Shelf())
    while not half.exhausted:
        for batch in half.poll():
            if batch.partition == f"{topic}/0":
                archiver.apply(intake.decode(batch))
    archiver.finish()
    files = FileSource(archive, event)
    backfill(views_of(event)[:1], files, store, handover=files.ends(), dead_letters=Shelf())
    by_loop(topic_of(broker, event), event, store)
    assert counted(store, event) == LOG.height


@through_every_door
def test_files_are_not_read_after_their_topic(door, broker, event, store, tmp_path):
    """The other way round; who says that they hold other events gets both counted."""
    by_loop(topic_of(broker, event), event, store)
    LOG.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(ConfigError, match=r"has read topic .* up to offset .*log.parquet.* --files-beside-topic"):
        door(FileSource(tmp_path / "log.parquet", event), event, store)
    assert counted(store, event) == LOG.height
    if door is not DOORS["own loop without a seek"]:
        door(FileSource(tmp_path / "log.parquet", event, beside_topic=True), event, store)
        assert counted(store, event) == 2 * LOG.height


@through_every_door
def test_an_archive_is_not_read_after_its_topic(door, broker, event, store, tmp_path):
    """Whether it ends before the reader's offset or behind it: the topic goes on there."""
    archiver = Archiver(tmp_path)
    loop.run(topic_of(broker, event), Intake((event,), dead_letters=Shelf()), [archiver])
    store_at = dict.fromkeys(topic_of(broker, event).partitions(), 10)
    shards = ShardSet(plan_of(views_of(event)[0]), store, range(4))
    shards.start_at(store_at)
    shards.flush()
    with pytest.raises(ConfigError, match="would be counted again"):
        door(FileSource(tmp_path, event), event, store)
    assert counted(store, event) == 0


@through_seeking_doors
def test_files_and_their_topic_are_not_read_side_by_side(door, broker, event, store, tmp_path):
    LOG.write_parquet(tmp_path / "log.parquet")
    files, topic = FileSource(tmp_path / "log.parquet", event), topic_of(broker, event)
    with pytest.raises(ConfigError, match="are read side by side"):
        door(MergedSource([files, topic]), event, store)
    assert counted(store, event) == 0
    door(MergedSource([files, topic_of(broker, event, start="latest")]), event, store)
    assert counted(store, event) == LOG.height


@through_seeking_doors
def test_a_changed_file_that_one_shard_has_read_is_refused(door, event, store, tmp_path):
    path = tmp_path / "log.parquet"
    LOG[:100].write_parquet(path)
    shards = ShardSet(plan_of(views_of(event)[0]), store, [3])
    shards.start_at({FileSource(path, event).partitions()[0]: 100})
    shards.flush()
    LOG[:200].write_parquet(path)
    with pytest.raises(SourceError, match="has changed since 100 of its rows were read"):
        door(FileSource(path, event), event, store)


@through_every_door
def test_a_version_that_nobody_reads_is_not_kept_up(door, broker, event, store):
    """Only a backfill writes it, and then activates it."""
    plan = plan_of(views_of(event)[0])
    module, _, qualname = plan.declared_in.partition(":")
    body = {"__module__": module, "__qualname__": qualname, "n": Count(windows="lifetime")}
    other = type("Other", (FeatureView,), body, source=event, entity="door", name=plan.name)
    store.activate(plan_of(other))
    if door is by_backfill:
        door(topic_of(broker, event), event, store)
        assert store.active(plan.name) == plan.fingerprint
        return
    with pytest.raises(LayoutError, match="run `headrace backfill`"):
        door(topic_of(broker, event), event, store)


@through_every_door
def test_no_door_leads_into_a_redis_that_evicts(door, broker, event, store):
    store._link.client.config_set("maxmemory", "200mb")
    store._link.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(EvictionError, match="allkeys-lru"):
            door(topic_of(broker, event), event, store)
    finally:
        store._link.client.config_set("maxmemory", "0")
        store._link.client.config_set("maxmemory-policy", "noeviction")


def test_the_functions_of_the_command_line_refuse_too(broker, event, store, tmp_path):
    """`materialize` and `backfill`, topic after files and files after the topic; what they are told overrides it."""
    LOG.write_parquet(tmp_path / "log.parquet")
    file, kafka = str(tmp_path / "log.parquet"), f"kafka://{broker}"
    views, settings = views_of(event)[:1], Settings(dead_letter_dir=tmp_path / "letters")
    with pytest.raises(ConfigError, match="are read side by side"):
        materialize_views(views, [file, kafka], store, settings, until_end=True)
    backfill_views(views, [file], store, settings, files_only=True)
    for act in (materialize_views, backfill_views):
        with pytest.raises(ConfigError, match="was filled from files"):
            act(views, [kafka], store, settings)
    materialize_views(views, [f"{kafka}?start=latest"], store, settings, until_end=True)
    assert counted(store, event) == LOG.height
    LOG.write_parquet(tmp_path / "more.parquet")
    with pytest.raises(ConfigError, match="has read topic"):
        materialize_views(views, [str(tmp_path / "more.parquet")], store, settings)
    with pytest.raises(ConfigError, match="has read topic"):
        backfill_views(views, [str(tmp_path / "more.parquet")], store, settings, files_only=True)
    materialize_views(
        views, [str(tmp_path / "more.parquet"), kafka], store, settings, until_end=True, beside_topic=True
    )
    assert counted(store, event) == 2 * LOG.height


def test_an_archive_that_grew_is_gone_on_with_by_an_unfinished_backfill(broker, event, store, tmp_path):
    """All was read and handed over but not activated; what the archive holds by now comes before the new hand-over."""
    archive = tmp_path / "archive"
    intake, archiver = Intake((event,), dead_letters=Shelf()), Archiver(archive)
    source = topic_of(broker, event, rows_max=100)
    source.seek({})
    while not archiver.positions():
        for batch in source.poll():
            archiver.apply(intake.decode(batch))
    archiver.finish()
    source.close()
    view = views_of(event)[0]
    files = FileSource(archive, event)
    backfill([view], files, store, handover=files.ends(), dead_letters=Shelf())
    store._link.client.hdel("hr:views", plan_of(view).name)
    loop.run(topic_of(broker, event), Intake((event,), dead_letters=Shelf()), [Archiver(archive)])
    grown = FileSource(archive, event)
    backfill([view], grown, store, handover=grown.ends(), dead_letters=Shelf())
    by_loop(topic_of(broker, event), event, store)
    assert counted(store, event) == LOG.height


def test_other_steps_that_keep_offsets_are_guarded_too(tmp_path):
    """A joiner's or an archive's state that came from files does not take the topic from its start."""
    archiver = Archiver(tmp_path)
    archiver.apply(as_batch(passage_of("doors"), LOG[:10], partition="doors/log.parquet"))
    joiner = JoinStep(Joiner(FOLLOWED))
    frame = pl.DataFrame(schema=spec_of(FOLLOWED.request).polars)
    joiner.apply(EventBatch(FOLLOWED.request, "shown/log.jsonl", np.arange(0), 7, frame, None, 1))
    for step, topic in ((archiver, "doors"), (joiner, "shown")):
        with pytest.raises(ConfigError, match=r"was filled from files \(.*/log\."):
            KafkaSource("127.0.0.1:1", [topic]).seek(step.positions())
    assert isinstance(least_positions([archiver.positions(), joiner.positions()]), Positions)


MODULE = """
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from features.v import V
from headrace.pipelines.on_bytewax import events_in, materialize
from headrace.pipelines.wiring import intake_of, kafka_source, open_store
from headrace.settings import load_settings
from schemas.ev import Ev
settings = load_settings()
flow = Dataflow("live")
events = op.input("events", flow, events_in(kafka_source(settings, (Ev,)), (Ev,), **intake_of(settings)))
materialize("views", events, [V], lambda: open_store(settings))
"""


@pytest.fixture
def project(tmp_path, topic):
    for name in ("schemas", "features", "pipelines", "learners", "serving"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("[tool.headrace]\n")
    (tmp_path / "schemas" / "ev.py").write_text(
        "from datetime import datetime\nfrom headrace import Event\n\n\n"
        f'class Ev(Event, topic="{topic}", key="user", id="eid", codec="json"):\n'
        "    eid: str\n    event_time: datetime\n    user: int\n"
    )
    (tmp_path / "features" / "v.py").write_text(
        "from headrace import Count, FeatureView\nfrom schemas.ev import Ev\n\n\n"
        'class V(FeatureView, source=Ev, entity="user"):\n    n = Count(windows="lifetime")\n'
    )
    (tmp_path / "pipelines" / "live.py").write_text(MODULE)
    (tmp_path / "log.jsonl").write_text('{"eid": "a", "event_time": "2026-01-01T00:00:00Z", "user": 1}\n')
    return tmp_path


PROCESSES = (
    ("headrace.cli", "materialize", "features.v:V", "--events", "kafka://{broker}", "--until-end"),
    ("headrace.cli", "run", "pipelines.live"),
    ("bytewax.run", "pipelines.live:flow"),
)


@pytest.mark.timeout(600)
def test_every_process_refuses_the_topic_after_a_backfill_without_a_hand_over(project, broker, topic, redis_url, repo):
    """`materialize` did; `run` and `bytewax.run` counted the topic's events again."""
    create_topics(broker, {topic: 1})
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment = {**clean, "HEADRACE_REDIS_URL": redis_url, "HEADRACE_BROKERS": broker, "PYTHONPATH": str(repo)}

    def start(*given):
        words = [word.replace("{broker}", broker) for word in given]
        return Forked(["-m", *words], cwd=project, env=environment, stderr=subprocess.PIPE, text=True)

    filling = start("headrace.cli", "backfill", "features.v:V", "--events", "log.jsonl", "--no-handover")
    assert filling.communicate(timeout=120) is not None
    assert filling.returncode == 0
    for process in [start(*words) for words in PROCESSES]:
        _, told = process.communicate(timeout=120)
        assert process.returncode != 0
        assert f"was filled from files ({topic}/log.jsonl" in told
