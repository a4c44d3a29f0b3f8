"""A Confluent schema registry: our schema's id, and the schemas that other writers used.

Source: Confluent Schema Registry API, `POST /subjects/{subject}/versions` and `GET /schemas/ids/{id}`. The subject is
`<topic>-value`, the registry's own default. The registry applies its own compatibility rule on registration.
"""

import re
from collections.abc import Mapping
from typing import Any

import httpx
import orjson
import tenacity

from headrace.errors import ConfigError, EvolutionError, ServiceError
from headrace.redaction import has_secrets, redacted, shown_url
from headrace.schemas.event import EventSpec

PATIENCE_S = 60.0
"""Seconds that a registry which is away holds up a flow before it is an error."""

_TIMEOUT_S = 10.0
_NOT_FOUND, _CONFLICT = 404, 409
_CONTENT = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


class SchemaRegistry:
    """One registry; ids and schemas are asked for once and kept, for an id never changes its schema.

    Args:
        url: with user and password in it where the registry wants them.
        transport: another way to send requests, for tests.
        patience_s: how long a registry that does not answer is asked again before that is an error.

    Raises:
        ConfigError: `url` is no URL of a registry.
    """

    def __init__(
        self, url: str, *, transport: httpx.BaseTransport | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._url = url
        self._shown_url = shown_url(url)
        self._patience_s = patience_s
        if not _is_url(url):
            raise ConfigError(
                f"HEADRACE_REGISTRY_URL {self._shown_url!r}: write https://user:password@host:port, with / ? # @ : and "
                "% in user and password percent-encoded"
            )
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, transport=transport)
        self._schemas: dict[int, Mapping[str, Any] | None] = {}

    def register(self, spec: EventSpec) -> int:
        """The id of the event's schema, registered when it is new.

        Raises:
            EvolutionError: the registry refuses the schema as incompatible.
            ServiceError: the registry does not answer as it should.
        """
        path = f"/subjects/{spec.topic}-value/versions"
        answer = self._ask("POST", path, _wanted(spec))
        if answer.status_code == _CONFLICT:
            raise EvolutionError(
                f"event {spec.name}: the schema registry refuses it: {answer.text}; keep old fields readable"
            )
        return int(self._content(answer)["id"])

    def id_of(self, spec: EventSpec) -> int | None:
        """The id of the event's schema, or None where nobody has registered it.

        Raises:
            ServiceError: the registry does not answer as it should.
        """
        answer = self._ask("POST", f"/subjects/{spec.topic}-value", _wanted(spec))
        return None if answer.status_code == _NOT_FOUND else int(self._content(answer)["id"])

    def schema(self, schema_id: int) -> Mapping[str, Any] | None:
        """The Avro schema of an id, or None where the registry knows none.

        Raises:
            ServiceError: the registry does not answer as it should.
        """
        if schema_id not in self._schemas:
            answer = self._ask("GET", f"/schemas/ids/{schema_id}")
            known = answer.status_code != _NOT_FOUND
            self._schemas[schema_id] = orjson.loads(self._content(answer)["schema"]) if known else None
        return self._schemas[schema_id]

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, content: bytes | None = None) -> httpx.Response:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError),
            stop=tenacity.stop_after_delay(self._patience_s),
            wait=tenacity.wait_exponential(0.1, max=2),
            reraise=True,
        )
        try:
            return retrying(self._client.request, method, path, content=content, headers=_CONTENT)
        except httpx.HTTPError as exc:
            raise ServiceError(
                f"schema registry {self._shown_url}: {redacted(repr(exc), self._url)}; check HEADRACE_REGISTRY_URL and "
                "that it runs"
            ) from (None if has_secrets(self._url) else exc)

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            asked = answer.request.url.path
            raise ServiceError(f"schema registry {self._shown_url}, {asked}: {answer.status_code} {answer.text}")
        content: dict[str, Any] = orjson.loads(answer.content)
        return content


def _is_url(url: str) -> bool:
    """Whether the place is clear: a password that is not percent-encoded may make a path of half of the URL."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"http", "https"} or re.search("[/?#]", rest.rpartition("@")[0]):
        return False
    try:
        return bool(httpx.URL(url).host)
    except (httpx.InvalidURL, UnicodeError):
        return False


def _wanted(spec: EventSpec) -> bytes:
    return orjson.dumps({"schema": orjson.dumps(spec.avro).decode()})
