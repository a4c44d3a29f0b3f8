"""Clients of a Kafka-protocol broker. Options that librdkafka rejects are one error, before anything connects."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from headrace.errors import ConfigError
from headrace.redaction import MASK

Client = TypeVar("Client")

OURS = frozenset({"bootstrap.servers", "metadata.broker.list"})
"""Options for the broker's address, which HEADRACE_BROKERS sets."""
_BROKER = re.compile(r"([A-Z_]+://)?[^@\s/]+")
_SECRET = re.compile(r"password|secret|token|pem|jaas|username|oauthbearer\.config|sasl\.login")


def connected(make: Callable[[dict[str, Any]], Client], bootstrap: str, options: Mapping[str, Any]) -> Client:
    """The client that `make`, a class of confluent-kafka, creates from `options`; it connects in the background.

    Raises:
        ConfigError: `bootstrap` names no broker, or an option is unknown or has a value that does not fit. The message
            shows no value of an option that may be a secret.
    """
    from confluent_kafka import KafkaException

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
    raise ConfigError(  # out of the handlers: the cause may quote a secret
        f"option of the broker's client (HEADRACE_KAFKA, config= in Python): {reason_shown}; "
        "librdkafka's CONFIGURATION.md lists all options and their values"
    )


def _without_secrets(reason: str, options: Mapping[str, Any]) -> str:
    secrets = {str(value) for name, value in options.items() if _SECRET.search(name)}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        reason = reason.replace(secret, MASK)
    return reason
