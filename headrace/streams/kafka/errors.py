"""Which errors of the broker's client waiting does not cure, and what to do about them."""

from confluent_kafka import KafkaError

_CREDENTIALS = frozenset({KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED})  # noqa: SLF001
_RIGHTS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})
FATAL = _CREDENTIALS | _RIGHTS | {KafkaError._SSL, KafkaError._FATAL, KafkaError.INVALID_MSG}  # noqa: SLF001
"""Codes that waiting does not cure. Every other one is passing: the client retries, we log once and go on."""


def told(error: KafkaError) -> str:
    """The client's words, and the setting to look at."""
    if error.code() in _CREDENTIALS:
        return f"{error.str()}; check sasl.mechanism, sasl.username and sasl.password in HEADRACE_KAFKA"
    if error.code() == KafkaError._SSL:  # noqa: SLF001
        return f"{error.str()}; check security.protocol and ssl.ca.location in HEADRACE_KAFKA"
    if error.code() in _RIGHTS:
        return f"{error.str()}; the user of HEADRACE_KAFKA (sasl.username) lacks the right"
    return str(error.str())
