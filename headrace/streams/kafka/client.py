"""Clients of a Kafka-protocol broker: options that librdkafka rejects, and errors that retrying cannot fix.

Invalid options raise one error, before anything connects. Messages name the settings to check.
"""

import contextlib
import difflib
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException

from headrace.errors import ConfigError
from headrace.redaction import MASK

Client = TypeVar("Client")

OURS = frozenset({"bootstrap.servers", "metadata.broker.list"})
"""Options for the broker's address, which HEADRACE_BROKERS sets."""
_BROKER = re.compile(r"([A-Z_]+://)?[^@\s/]+")
_SECRET = re.compile(r"password|secret|token|pem|jaas|username|oauthbearer\.config|sasl\.login")

_CREDENTIALS = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})  # noqa: SLF001
_RIGHTS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
FATAL = _CREDENTIALS | _RIGHTS | {KafkaError._SSL, KafkaError._FATAL, KafkaError.INVALID_MSG}  # noqa: SLF001
"""Codes that retrying cannot fix. All others are transient: the client retries, and we log once."""
TOPICS_NAMED = 20
"""Maximum number of existing topics in a message about an unknown one."""


def connected(make: Callable[[dict[str, Any]], Client], bootstrap: str, options: Mapping[str, Any]) -> Client:
    """The client that `make`, a class of confluent-kafka, creates from `options`; it connects in the background.

    Raises:
        ConfigError: `bootstrap` names no broker, or an option is unknown or has an invalid value. The message does not
            show values of options that may be secret.
    """
    if not all(_BROKER.fullmatch(broker.strip()) for broker in bootstrap.split(",")):
        raise ConfigError(
            f"brokers {MASK if '@' in bootstrap else repr(bootstrap)}: write host:port, several separated by commas; "
            'user and password are options, HEADRACE_KAFKA=\'{"sasl.username": ..., "sasl.password": ...}\''
        )
    reserved = sorted(OURS & set(options))
    if reserved:
        raise ConfigError(f"option {reserved[0]} of HEADRACE_KAFKA: leave it out, HEADRACE_BROKERS names the brokers")
    try:
        return make({**options, "bootstrap.servers": bootstrap})
    except KafkaException as exc:
        reason = exc.args[0].str()
    except (TypeError, ValueError) as exc:
        reason = str(exc)
    reason_shown = _without_secrets(reason.strip(), options)
    raise ConfigError(  # outside the handlers: the cause may quote a secret
        f"option of the broker's client (HEADRACE_KAFKA, config= in Python): {reason_shown}; "
        "librdkafka's CONFIGURATION.md lists all options and their values"
    )


def _without_secrets(reason: str, options: Mapping[str, Any]) -> str:
    secrets = {str(value) for name, value in options.items() if _SECRET.search(name)}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        reason = reason.replace(secret, MASK)
    return reason


def takes_connections(bootstrap: str, wait_s: float) -> bool:
    """Whether a broker accepts a connection within `wait_s`; a client's request would be added to its queue."""
    for broker in bootstrap.split(","):
        host, _, port = broker.strip().rpartition("/")[2].rpartition(":")
        with contextlib.suppress(OSError, ValueError):
            socket.create_connection((host.strip("[]"), int(port)), wait_s).close()
            return True
    return False


def describe(error: KafkaError) -> str:
    """The message of an error, and the setting to check."""
    if error.code() in _CREDENTIALS:
        return f"{error.str()}; check sasl.mechanism, sasl.username and sasl.password in HEADRACE_KAFKA"
    if error.code() == KafkaError._SSL:  # noqa: SLF001
        return f"{error.str()}; check security.protocol and ssl.ca.location in HEADRACE_KAFKA"
    if error.code() in _RIGHTS:
        return f"{error.str()}; the user of HEADRACE_KAFKA (sasl.username) lacks the right"
    return str(error.str())


def unknown_topic(topic: str, bootstrap: str, existing: list[str]) -> str:
    """The message for a topic that does not exist; names existing topics, the most similar first."""
    have = ", ".join(difflib.get_close_matches(topic, existing, TOPICS_NAMED, 0.0)) or "none at all"
    return (
        f"broker {bootstrap} has no topic {topic!r}; it has {have}. Create it with "
        f"`kafka-topics.sh --bootstrap-server {bootstrap} --create --topic {topic} --partitions 4`, or "
        f'`headrace.pipelines.create_topics("{bootstrap}", {{"{topic}": 4}})`'
    )


def lost_offset(partition: str, offset: int, *, low: int | None = None, high: int | None = None) -> str:
    """The message for an offset that the broker does not have; `low` is its first offset, `high` the log's end."""
    reason = f"the broker's first is {low}" if low is not None else ""
    reason = f"the log ends at {high}: the topic was created anew" if high is not None else reason
    return (
        f"{partition}: offset {offset} is lost; {reason or 'the broker does not have it'}. "
        "What lies between cannot be read any more: rebuild from an archive (backfill), or start a fresh store"
    )


def partly_lost(partition: str, reader: str, low: int) -> str:
    """Message of a partition that some parts of a reader have an offset of, and whose first offset is `low`."""
    return (
        f"{partition}: {reader} knows where it goes on in some of its shards, and not in others; the broker's first "
        f"offset is {low}, so what those had counted before cannot be read any more. Redis has lost a part of its "
        "data: rebuild from an archive (backfill), or start a fresh store; if instead the first flush was "
        "interrupted, say kafka://...?start=earliest once, in Python KafkaSource(..., start='earliest')"
    )
