"""TLS and passwords of a broker: the settings reach every client, what is wrong is named, no secret is told."""

import json
import time

import pytest

from headrace.errors import ConfigError, SourceError
from headrace.pipelines.wiring import dead_letters, kafka_source, topic_writer
from headrace.schemas import DeadLetter
from headrace.settings import Settings, load_settings
from headrace.streams.kafka_writer import KafkaDeadLetters, create_topics
from tests.logs import capture_logs
from tests.secure_broker import PASSWORD, SecureBroker
from tests.turnstiles import drain, passage_of, passages

LETTER = DeadLetter("doors", "doors/0", 1, "undecodable", "no datum", b"x", 0)


@pytest.fixture(params=["tls", "sasl", "tls and sasl"])
def secure(request, tmp_path):
    with SecureBroker(tmp_path, tls="tls" in request.param, sasl="sasl" in request.param) as broker:
        yield broker


def settings_of(monkeypatch, tmp_path, broker, **changed):
    """Settings as a deployment gives them: by the environment."""
    monkeypatch.setenv("HEADRACE_BROKERS", broker.bootstrap)
    monkeypatch.setenv("HEADRACE_KAFKA", json.dumps(broker.config | changed))
    monkeypatch.setenv("HEADRACE_DEAD_LETTER_DIR", str(tmp_path / "letters"))
    return load_settings()


def test_the_settings_reach_source_producer_dead_letters_and_admin(secure, tmp_path, monkeypatch):
    settings = settings_of(monkeypatch, tmp_path, secure)
    doors = passage_of("doors")
    create_topics(settings.brokers, {"doors": 2, settings.dead_letter_topic: 1}, config=settings.kafka)
    writer = topic_writer(settings, doors)
    writer.write(passages(500))
    writer.close()
    letters = dead_letters(settings)
    letters.write([LETTER])
    letters.close()
    source = kafka_source(settings, [doors])
    assert sum(len(batch.offsets) for batch in drain(source, rows=500)) == 500
    source.close()


def everything_that_connects(settings, doors):
    writer = topic_writer(settings, doors)
    writer.write(passages(5))
    yield "producer", writer.close
    letters = KafkaDeadLetters(settings.brokers, config=settings.kafka)
    yield "dead letters", lambda: letters.write([LETTER])
    yield "source", kafka_source(settings, [doors]).partitions
    yield "admin", lambda: create_topics(settings.brokers, {"other": 1}, config=settings.kafka)


def test_a_wrong_password_is_one_error_that_names_the_setting(tmp_path, monkeypatch):
    with SecureBroker(tmp_path, tls=False, sasl=True) as broker:
        settings = settings_of(monkeypatch, tmp_path, broker, **{"sasl.password": "wr0ng-word"})
        with capture_logs() as logs:
            for name, connect in everything_that_connects(settings, passage_of("doors")):
                started_s = time.monotonic()
                with pytest.raises(SourceError, match=r"check .*sasl.password in HEADRACE_KAFKA") as caught:
                    connect()
                assert time.monotonic() - started_s < 10, name
                assert "wr0ng-word" not in str(caught.value)
        assert "wr0ng-word" not in str(logs)


def test_a_certificate_that_nobody_vouches_for_is_one_error_that_names_the_setting(tmp_path, monkeypatch):
    with SecureBroker(tmp_path, tls=True, sasl=False) as broker:
        del broker.config["ssl.ca.location"]
        settings = settings_of(monkeypatch, tmp_path, broker)
        with pytest.raises(SourceError, match=r"check .*ssl.ca.location in HEADRACE_KAFKA"):
            kafka_source(settings, [passage_of("doors")]).partitions()


def test_no_secret_is_told_by_settings(monkeypatch):
    monkeypatch.setenv("HEADRACE_KAFKA", json.dumps({"sasl.password": PASSWORD}))
    monkeypatch.setenv("HEADRACE_REDIS_URL", f"redis://:{PASSWORD}@host/0")
    monkeypatch.setenv("HEADRACE_REGISTRY_URL", f"http://me:{PASSWORD}@host")
    monkeypatch.setenv("HEADRACE_API_KEYS", json.dumps([PASSWORD]))
    settings = load_settings()
    assert PASSWORD in settings.redis_url
    assert PASSWORD not in f"{settings} {settings!r}"
    assert Settings.model_fields["kafka"].repr is False
    for wrong, message in (
        ('{"sasl.password": [77001]}', r"HEADRACE_KAFKA\['sasl.password'\]: .*not shown"),
        ("sasl.password=77001", "HEADRACE_KAFKA: no JSON; write it as"),
    ):
        monkeypatch.setenv("HEADRACE_KAFKA", wrong)
        with pytest.raises(ConfigError, match=message) as caught:
            load_settings()
        assert "77001" not in str(caught.value)
        assert caught.value.__cause__ is None
