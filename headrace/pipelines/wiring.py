"""Parts of a project's flows that depend on its settings: broker, store, dead letters, registry.

This is the only module of `headrace.pipelines` that reads `Settings`; classes take plain arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from headrace.clock import Clock
from headrace.errors import ConfigError
from headrace.features.store import OnlineStore
from headrace.schemas import DeadLetter, DeadLetters, Event, FileDeadLetters, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.settings import Settings
from headrace.telemetry import StatusBoard

if TYPE_CHECKING:  # they import the broker's client, an optional package
    from headrace.streams.kafka_source import KafkaSource, Start
    from headrace.streams.kafka_writer import TopicWriter


def kafka_source(settings: Settings, events: Sequence[type[Event]], *, start: "Start | None" = None) -> "KafkaSource":
    """Source of the topics of `events`; `start`, as in `KafkaSource`, applies to partitions not read yet.

    Raises:
        ConfigError: one of these topics is the topic of dead letters.
    """
    from headrace.streams.kafka_source import KafkaSource

    for event in events:
        if spec_of(event).topic == settings.dead_letter_topic:
            raise ConfigError(
                f"HEADRACE_DEAD_LETTER_TOPIC={settings.dead_letter_topic!r} is the topic of event {event.__name__}: "
                "each letter would be read as an event, and make another letter; name another topic"
            )
    return KafkaSource(settings.brokers, events, start=start, config=settings.kafka)


def open_store(settings: Settings) -> OnlineStore:
    """Open the online store.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    return OnlineStore.open(
        settings.redis_url, settings.shards, settings.namespace, allow_eviction=settings.allow_eviction
    )


def dead_letters(settings: Settings) -> DeadLetters:
    """Dead letters to files and to the topic; nothing is opened before the first dead letter."""
    return _Several(
        lambda: FileDeadLetters(settings.dead_letter_dir),
        lambda: _topic_of_letters(settings),
    )


def _topic_of_letters(settings: Settings) -> DeadLetters:
    from headrace.streams.kafka_writer import KafkaDeadLetters

    return KafkaDeadLetters(settings.brokers, settings.dead_letter_topic, config=settings.kafka)


class IntakeOptions(TypedDict):
    """Keyword arguments of `events_in` and `Intake`."""

    dead_letters: DeadLetters
    clock: Clock
    future_us: int
    registry: SchemaRegistry | None


def intake_of(settings: Settings, letters: DeadLetters | None = None) -> IntakeOptions:
    """Options of an intake: how to check events, and where bad events go, `letters` or by default `dead_letters`."""
    return IntakeOptions(
        dead_letters=dead_letters(settings) if letters is None else letters,
        clock=settings.event_clock,
        future_us=int(settings.future_s * 1e6),
        registry=registry_of(settings),
    )


def registry_of(settings: Settings) -> SchemaRegistry | None:
    """The schema registry; None if none is configured."""
    return SchemaRegistry(settings.registry_url) if settings.registry_url else None


def topic_writer(settings: Settings, event: type[Event]) -> "TopicWriter":
    """A producer of `event`; with a registry it registers the event's schema.

    Raises:
        EvolutionError: the registry refuses the schema.
        ServiceError: the registry does not answer.
    """
    from headrace.streams.kafka_writer import TopicWriter

    return TopicWriter(settings.brokers, event, config=settings.kafka, registry=registry_of(settings))


def status_of(settings: Settings, role: str) -> Callable[[Mapping[str, Any]], object]:
    """A function that posts a document as the status of `role`."""
    board = StatusBoard(settings.redis_url, settings.namespace)
    return lambda document: board.post(role, document)


class _Several:
    """Writes dead letters to several sinks in order: files first, since the broker may be unavailable."""

    def __init__(self, *makers: Callable[[], DeadLetters]) -> None:
        self._makers = makers
        self._opened: list[DeadLetters] = []

    def write(self, letters: Sequence[DeadLetter]) -> None:
        if letters and not self._opened:
            self._opened = [make() for make in self._makers]
        for sink in self._opened:
            sink.write(letters)

    def close(self) -> None:
        for sink in self._opened:
            sink.close()
