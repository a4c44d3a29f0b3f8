"""Client of a Confluent schema registry: the id of an event's schema, and the schemas of other writers.

Source: Confluent Schema Registry API, `POST /subjects/{subject}/versions` and `GET /schemas/ids/{id}`. The subject is
`<topic>-value`, the registry's default. The registry applies its compatibility rule on registration.

httpx is imported on first use: without it, a program that only reads features starts 0.3 s earlier.
"""

import re
from typing import TYPE_CHECKING, Any, cast

import orjson
import tenacity

from headrace.errors import ConfigError, EvolutionError, SchemaError, ServiceError
from headrace.redaction import has_secrets, redacted, shown_url
from headrace.schemas.event import EventSpec

if TYPE_CHECKING:
    import httpx

PATIENCE_S = 60.0
"""Seconds that a flow waits for an unavailable registry before it fails."""

_TIMEOUT_S = 10.0
_NOT_FOUND, _CONFLICT, _TOO_MANY = 404, 409, 429
_NO_SUCH_ID = frozenset({400, 422})  # the id itself is invalid, so another attempt will not help
_CONTENT = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


class UnusableAnswerError(SchemaError):
    """The registry's answer cannot be read; a later answer may be usable."""


class SchemaRegistry:
    """A client of one registry.

    Schemas are fetched once and cached, since the schema of an id never changes. Unknown ids are not cached.

    Args:
        url: URL of the registry, with user and password if it requires them.
        transport: replaces the HTTP transport, for tests.
        patience_s: how long requests are retried before the failure is an error.

    Raises:
        ConfigError: `url` is not the URL of a registry.
    """

    def __init__(
        self, url: str, *, transport: "httpx.BaseTransport | None" = None, patience_s: float = PATIENCE_S
    ) -> None:
        import httpx

        self._url = url
        self._shown_url = shown_url(url)
        self._patience_s = patience_s
        if not _is_url(url):
            raise ConfigError(
                f"HEADRACE_REGISTRY_URL {self._shown_url!r}: write https://user:password@host:port, with / ? # @ : and "
                "% in user and password percent-encoded"
            )
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, transport=transport)
        self._schemas: dict[int, tuple[str, Any]] = {}

    def register(self, spec: EventSpec) -> int:
        """Register the event's schema if it is new, and return its id.

        Raises:
            EvolutionError: the registry rejects the schema as incompatible.
            ServiceError: the registry does not answer, or not as expected.
        """
        path = f"/subjects/{spec.topic}-value/versions"
        answer = self._ask("POST", path, _wanted(spec))
        if answer.status_code == _CONFLICT:
            reason = redacted(answer.text, self._url)
            raise EvolutionError(
                f"event {spec.name}: the schema registry refuses it: {reason}; keep old fields readable"
            )
        return self._id(answer)

    def id_of(self, spec: EventSpec) -> int | None:
        """The id of the event's schema, or None if it is not registered.

        Raises:
            ServiceError: the registry does not answer, or not as expected.
        """
        answer = self._ask("POST", f"/subjects/{spec.topic}-value", _wanted(spec))
        return None if answer.status_code == _NOT_FOUND else self._id(answer)

    def schema(self, schema_id: int) -> Any:
        """The Avro schema of an id, parsed as JSON, or None if the registry does not know the id.

        Raises:
            SchemaError: the id's schema is not an Avro schema.
            UnusableAnswerError: the answer contains no schema; the next call asks again.
            ServiceError: the registry does not answer, or not as expected, or refuses the request.
        """
        if schema_id not in self._schemas:
            answer = self._ask("GET", f"/schemas/ids/{schema_id}")
            if answer.status_code == _NOT_FOUND:
                return None
            self._schemas[schema_id] = self._read(answer)
        kind, schema = self._schemas[schema_id]
        if kind != "AVRO":
            raise SchemaError(f"the schema is {kind}, and only Avro is read")
        return schema

    def _read(self, answer: "httpx.Response") -> tuple[str, Any]:
        """(Kind of the schema, the schema if it is Avro, else None)."""
        if answer.is_error and answer.status_code in _NO_SUCH_ID:
            raise UnusableAnswerError(f"schema registry {self._shown_url}: {self._describe(answer)}")
        content = self._content(answer)
        kind, text = content.get("schemaType", "AVRO"), content.get("schema", "")
        if kind != "AVRO":
            return str(kind), None
        try:
            return "AVRO", orjson.loads(text)
        except (TypeError, orjson.JSONDecodeError) as exc:
            raise UnusableAnswerError(
                f"schema registry {self._shown_url}: answered {str(text)[:80]!r} for a schema"
            ) from exc

    def _id(self, answer: "httpx.Response") -> int:
        try:
            return int(self._content(answer)["id"])
        except (UnusableAnswerError, KeyError, TypeError, ValueError) as exc:
            described = f"schema registry {self._shown_url}: {self._describe(answer)}"
            raise ServiceError(f"{described}, which holds no id; check HEADRACE_REGISTRY_URL") from exc

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _describe(self, answer: "httpx.Response") -> str:
        return redacted(f"{answer.request.url.path} answered {answer.status_code} {answer.text[:200]}", self._url)

    def _ask(self, method: str, path: str, content: bytes | None = None) -> "httpx.Response":
        import httpx

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError) | tenacity.retry_if_result(_is_passing),
            stop=tenacity.stop_after_delay(self._patience_s),
            wait=tenacity.wait_exponential(0.1, max=2),
            retry_error_callback=_last,
        )
        try:
            return retrying(self._client.request, method, path, content=content, headers=_CONTENT)
        except httpx.HTTPError as exc:
            raise ServiceError(
                f"schema registry {self._shown_url}: {redacted(repr(exc), self._url)}; check HEADRACE_REGISTRY_URL and "
                "that it runs"
            ) from (None if has_secrets(self._url) else exc)

    def _content(self, answer: "httpx.Response") -> dict[str, Any]:
        if answer.is_error:
            raise ServiceError(f"schema registry {self._shown_url}: {self._describe(answer)}")
        try:
            content = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            raise UnusableAnswerError(
                f"schema registry {self._shown_url}: {self._describe(answer)}, which is no JSON object"
            )
        return content


def _is_url(url: str) -> bool:
    """Whether a URL is unambiguous: a password that is not percent-encoded may turn part of the URL into a path."""
    import httpx

    scheme, _, rest = url.partition("://")
    if scheme not in {"http", "https"} or re.search("[/?#]", rest.rpartition("@")[0]):
        return False
    try:
        return bool(httpx.URL(url).host)
    except (httpx.InvalidURL, UnicodeError):
        return False


def _is_passing(answer: "httpx.Response") -> bool:
    """Whether the fault is temporary, so that a retry may succeed."""
    return answer.is_server_error or answer.status_code == _TOO_MANY


def _last(state: tenacity.RetryCallState) -> "httpx.Response":
    """Return the last attempt's answer, or raise its error."""
    assert state.outcome is not None
    return cast("httpx.Response", state.outcome.result())


def _wanted(spec: EventSpec) -> bytes:
    return orjson.dumps({"schema": orjson.dumps(spec.avro).decode()})
