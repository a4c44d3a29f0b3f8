"""One topic, two declarations: what the old one wrote and what the new one writes become the same records."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from pydantic import AliasChoices

from headrace.errors import ServiceError
from headrace.features import Count, FeatureView, LastN, Sum
from headrace.features.store import OnlineStore
from headrace.local import free_port
from headrace.pipelines import KafkaSource, Materializer, loop
from headrace.pipelines.wiring import intake_of, kafka_source, topic_writer
from headrace.schemas import AvroCodec, Event, Field, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.settings import Settings
from headrace.streams.intake import Intake
from headrace.streams.kafka_writer import TopicWriter, create_topics
from tests.schema_registry import SchemaRegistryServer
from tests.turnstiles import Shelf

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ROWS = 200


def declarations(topic, codec):
    """The event before and after: `height` renamed and made a float, `note` gone, `site` new with a default."""

    class Before(Event, topic=topic, key="sensor", codec=codec):
        event_time: datetime
        sensor: int
        height: int
        note: str | None

    class Reading(Event, topic=topic, key="sensor", codec=codec):
        event_time: datetime
        sensor: int
        level: float = Field(validation_alias=AliasChoices("level", "height"))
        site: str = "north"

    class Levels(FeatureView, source=Reading, entity="sensor"):
        readings = Count(windows="lifetime")
        level = Sum("level", windows="lifetime")
        sites = LastN("site", n=2, distinct=True)

    return Before, Reading, Levels


def rows(start, **columns):
    index = pl.int_range(start, start + ROWS, eager=True)
    return pl.DataFrame({"event_time": [NOON + timedelta(seconds=i) for i in index], "sensor": index % 3, **columns})


def bring_in(source, intake, view, store):
    loop.run(source, intake, [Materializer([view], store)])


def check(view, store, letters):
    index = pl.int_range(2 * ROWS, eager=True)
    truth = pl.DataFrame({"sensor": index % 3, "level": index + 0.5 * (index >= ROWS)})
    found = store.read(view, [0, 1, 2], now=NOON + timedelta(days=1))
    wanted = truth.group_by("sensor").agg(pl.len(), pl.col("level").sum()).sort("sensor")
    assert found["readings_lifetime"].to_list() == wanted["len"].to_list()
    assert found["level_lifetime"].to_list() == wanted["level"].to_list()
    assert found["sites"].to_list() == [["south", "north"]] * 3
    assert letters == []


OLD = rows(0, height=pl.int_range(ROWS, eager=True), note=["n"] * ROWS)
NEW = rows(ROWS, level=pl.int_range(ROWS, 2 * ROWS, eager=True) + 0.5, site=["south"] * ROWS)


@pytest.mark.parametrize("codec", ["json", "arrow"])
def test_payloads_that_carry_names_are_read_by_them(codec, broker, topic, redis_url):
    before, after, view = declarations(topic, codec)
    create_topics(broker, {topic: 2})
    for event, frame in ((before, OLD), (after, NEW)):
        with_close(TopicWriter(broker, event), frame)
    shelf = Shelf()
    with OnlineStore.open(redis_url) as store:
        bring_in(KafkaSource(broker, [after], until_end=True), Intake([after], dead_letters=shelf), view, store)
        check(view, store, shelf.letters)


def test_plain_avro_is_read_by_the_old_lock_file_up_to_the_upgrade(broker, topic, redis_url):
    """old events | read with `writer=` to their end | new events, new readers: the offsets in the store part them."""
    before, after, view = declarations(topic, "avro")
    create_topics(broker, {topic: 2})
    shelf = Shelf()
    by_old = {after: AvroCodec(spec_of(after), writer=spec_of(before).avro)}
    with OnlineStore.open(redis_url) as store:
        for event, frame, codecs in ((before, OLD, by_old), (after, NEW, None)):
            with_close(TopicWriter(broker, event), frame)
            source = KafkaSource(broker, [after], until_end=True)
            bring_in(source, Intake([after], dead_letters=shelf, codecs=codecs), view, store)
        check(view, store, shelf.letters)


def test_the_registry_of_the_settings_tells_who_wrote_what(broker, topic, redis_url, tmp_path):
    """Producers register, readers ask for each other writer's schema once, and never register."""
    before, after, view = declarations(topic, "confluent-avro")
    create_topics(broker, {topic: 2})
    with SchemaRegistryServer() as registry, OnlineStore.open(redis_url) as store:
        settings = Settings(brokers=broker, registry_url=registry.url, dead_letter_dir=tmp_path)
        with_close(topic_writer(settings, before), OLD)
        bring_in(stopping(kafka_source(settings, [after])), Intake([after], **intake_of(settings)), view, store)
        assert len(registry.schemas) == 1
        with_close(topic_writer(settings, after), NEW)
        registry.asked.clear()
        bring_in(stopping(kafka_source(settings, [after])), Intake([after], **intake_of(settings)), view, store)
        assert len(registry.schemas) == 2
        assert registry.asked == [("POST", f"/subjects/{topic}-value")]
        check(view, store, list(tmp_path.glob("*")))


def test_a_registry_that_is_away_is_named_with_its_setting_and_without_its_password():
    port = free_port()
    away = SchemaRegistry(f"http://me:secret@127.0.0.1:{port}", patience_s=0.2)
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}.*check HEADRACE_REGISTRY_URL") as caught:
        away.schema(1)
    assert "secret" not in str(caught.value)


def stopping(source):
    """The same source, which ends at the present end."""
    return KafkaSource(source.bootstrap, source.topics, until_end=True)


def with_close(writer, frame):
    writer.write(frame)
    writer.close()
