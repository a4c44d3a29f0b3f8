"""Commands for one machine: run a project's Redis and broker, and send and show events of topics."""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace import project, stack_state
from headrace.cli.console import CsvTimeFormat, Json, app, command, err, finite, say
from headrace.errors import ConfigError, UnknownTopicError
from headrace.settings import Settings, load_settings
from headrace.stack_state import StackState
from headrace.telemetry import configure_logs

if TYPE_CHECKING:
    from headrace.schemas import DeadLetter, DeadLetters, Event
    from headrace.streams.intake import Intake
    from headrace.streams.source import Source
    from headrace.streams.tail import Seen

REDIS_PORT, BROKER_PORT = 16_379, 19_092
"""Default ports of `headrace up`, which differ from those of a Redis and a Kafka that may be installed as well."""
PARTITIONS = 4
REFUSED_SHOWN = 20
"""Refused rows that `produce` shows; further ones are only counted."""

EventName = Annotated[str, typer.Argument(metavar="EVENT", help="Name of an event class, or module:Class.")]


@command(app, "up")
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when they are ready; they go on.")] = False,
    redis_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of Redis; 0: any free one. Default: the last, or 16379.")
    ] = None,
    broker_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the broker; 0: any free one. Default: the last, or 19092."),
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, max=1_000, help="Partitions of each new topic.")] = PARTITIONS,
) -> None:
    """Run this project's own Redis and broker until Ctrl-C or `headrace down`, and make the topics of its events.

    Commands in the project find them by themselves. Redis keeps its data in .headrace/local; the broker's topics are in
    memory. What dies is started again.

    Example: `headrace up --detach`
    """
    from headrace.local.keep import keep
    from headrace.local.stack import add_topics, start_detached

    root, settings = project.activate(), load_settings()
    folder = root / stack_state.FOLDER
    topics = _topics(root, settings, partitions)
    running = stack_state.read_state(folder)
    if running is not None and running.is_running:
        if not running.is_ready:
            raise ConfigError(f"the services of this project are being started by process {running.pid}: wait for it")
        _refuse_other_ports(running, redis_port, broker_port)
        added = add_topics(running, topics)
        news = f"; new topics: {', '.join(added)}" if added else ""
        say(f"already {_described(running, topics)}{news}")
        return
    last = (None, None) if running is None else (running.redis_port, running.broker_port)
    ports = {
        "redis_port": _port(redis_port, settings.local_redis_port, last[0], REDIS_PORT),
        "broker_port": _port(broker_port, settings.local_broker_port, last[1], BROKER_PORT),
    }
    if detach:
        _tell(start_detached(folder, topics, **ports), topics, "headrace down")
    else:
        keep(folder, topics, **ports, on_ready=lambda state: _tell(state, topics, "Ctrl-C, or headrace down"))


@command(app, "down")
def down() -> None:
    """Stop this project's own Redis and broker. Redis keeps its data; what the broker's topics hold is lost.

    Example: `headrace down`
    """
    from headrace.local.stack import stop_stack

    folder = project.find_root() / stack_state.FOLDER
    say("stopped" if stop_stack(folder) else "nothing runs")


@command(app, "produce", uses_services=True)
def produce(
    event: EventName,
    path: Annotated[str, typer.Option("--from", metavar="FILE", help="File, glob or URL; - for JSON lines on stdin.")],
    rate: Annotated[
        float | None, typer.Option(min=0.001, callback=finite, help="Rows a second, at most. Default: no limit.")
    ] = None,
    csv_time_format: CsvTimeFormat = None,
) -> None:
    """Send the rows of a file to an event's topic, in its codec and keyed by its key.

    Each row is checked by the event's rules first; a row that breaks one is shown, counted and not sent, and the exit
    code is 1.

    Example: `headrace produce Engagement --from log.parquet --rate 1000`
    """
    from headrace.cli.progress import RowsBar
    from headrace.pipelines.loop import graceful_stop
    from headrace.pipelines.wiring import topic_writer
    from headrace.streams.produce import LineSource, Sent
    from headrace.streams.produce import produce as send
    from headrace.streams.urls import source_of_url

    declared, settings = _event(event), load_settings()
    configure_logs("error", as_json=settings.log_json)  # what is refused is shown below
    is_stdin = path == "-"
    if is_stdin:
        source: Source = LineSource(sys.stdin.fileno(), declared)
    else:
        source = source_of_url(path, [declared], until_end=True, csv_time_format=csv_time_format)
    source.partitions()  # a file that is not there is reported before a broker is waited for
    _require_topic(declared, settings)
    refused, sent = _Refused(), Sent()
    try:
        with graceful_stop() as stop, RowsBar(err, description="produce") as bar:

            def show(sent: Sent) -> None:
                bar.update(sent.rows, words=f"{refused.count:,} refused" if refused.count else "")

            send(source, declared, topic_writer(settings, declared), _intake(declared, settings, refused), sent,
                 rate=rate, stop=stop, on_progress=show)  # fmt: skip
    finally:
        before = "interrupted: " if stop.is_set() else ""
        say(f"{before}{sent.rows:,} sent, {refused.count:,} refused")
    if stop.is_set():
        raise typer.Exit(130)
    if refused.count:
        raise typer.Exit(1)


@command(app, "tail", uses_services=True)
def tail(
    event: EventName,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with what the topic holds now.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    as_json: Json = False,
) -> None:
    """Show what flows through an event's topic, and why a message cannot be used, until Ctrl-C.

    Example: `headrace tail Engagement --from-start --count 10`
    """
    from headrace.pipelines.loop import graceful_stop
    from headrace.streams.kafka_source import KafkaSource
    from headrace.streams.tail import tail as rows_of

    declared, settings = _event(event), load_settings()
    source = KafkaSource(
        settings.brokers, [declared], start="earliest" if from_start else "latest", config=settings.kafka
    )
    _require_topic(declared, settings)
    with graceful_stop() as stop:
        rows = rows_of(source, declared, partial(_intake, declared, settings), stop)
        for seen in islice(rows, count):
            typer.echo(_line_of(seen, as_json=as_json))


def _event(name: str) -> type["Event"]:
    return project.event_named(name, project.activate())


def _intake(event: type["Event"], settings: Settings, dead_letters: "DeadLetters") -> "Intake":
    """The intake that decodes and checks rows of `event`, and writes unusable rows to `dead_letters`."""
    from headrace.pipelines.wiring import intake_of
    from headrace.streams.intake import Intake

    return Intake([event], **intake_of(settings, dead_letters))


def _require_topic(event: type["Event"], settings: Settings) -> None:
    """Check that the broker has the topic, before sending to it or waiting for its events."""
    from headrace.streams.kafka_source import KafkaSource

    source = KafkaSource(settings.brokers, [event], config=settings.kafka)
    try:
        source.partitions()
    except UnknownTopicError as exc:
        if settings.stack is None:
            raise
        raise UnknownTopicError(f"{exc}; or run `headrace up` again, which makes the topics of new events") from exc
    finally:
        source.close()


def _line_of(seen: "Seen", *, as_json: bool) -> str:
    """One message of a topic as a line of text, or as a JSON object."""
    import orjson

    if not as_json:
        shown = seen.row.decode() if seen.row is not None else f"{seen.reason}: {seen.detail}"
        return f"{seen.partition} {seen.offset} {shown}"
    place = {"partition": seen.partition, "offset": seen.offset}
    content = {"reason": seen.reason, "detail": seen.detail} if seen.row is None else {"row": orjson.Fragment(seen.row)}
    return orjson.dumps({**place, **content}).decode()


class _Refused:
    """A sink for rows that break a rule: all are counted, and the first ones shown."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, letters: Sequence["DeadLetter"]) -> None:
        """Count the letters, and show the first `REFUSED_SHOWN` of them."""
        from headrace.streams.files.names import shown_path

        for letter in letters[: max(REFUSED_SHOWN - self.count, 0)]:
            say(f"refused: {shown_path(letter.partition)} · row {letter.offset + 1}: {letter.reason}: {letter.detail}")
        self.count += len(letters)

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _tell(state: StackState, topics: dict[str, int], stop: str) -> None:
    say(f"{_described(state, topics)}; stop: {stop}")
    if state.has_lost_topics:
        say("the broker begins with empty topics: events that nobody had read are lost; Redis has kept its data")


def _described(state: StackState, topics: dict[str, int]) -> str:
    names = ", ".join(sorted(topics))
    return f"up: Redis {state.redis_url}, broker {state.brokers}, topics {names}, data {_shown(state.folder)}"


def _shown(folder: Path) -> Path:
    """A folder relative to the working directory, if it is below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _topics(root: Path, settings: Settings, partitions: int) -> dict[str, int]:
    """Topics of the project's events and of dead letters -> number of partitions."""
    from headrace.schemas import spec_of

    events, broken = project.events(root)
    for fault in broken:
        say(f"no topic for its events: {fault}")
    topics = {spec_of(event).topic: partitions for event in events}
    return {**topics, settings.dead_letter_topic: 1}


def _port(*choices: int | None) -> int:
    """The first choice that is not None."""
    return next(choice for choice in choices if choice is not None)


def _refuse_other_ports(running: StackState, redis_port: int | None, broker_port: int | None) -> None:
    for name, asked, used in (
        ("--redis-port", redis_port, running.redis_port),
        ("--broker-port", broker_port, running.broker_port),
    ):
        if asked not in {None, 0, used}:
            raise ConfigError(f"{name} {asked}: it runs on {used} (process {running.pid}); `headrace down` first")
