"""A Confluent schema registry: our schema's id, and the schemas that other writers used.

Source: Confluent Schema Registry API, `POST /subjects/{subject}/versions` and `GET /schemas/ids/{id}`. The subject is
`<topic>-value`, the registry's own default. The registry applies its own compatibility rule on registration.
"""

from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from headrace.errors import EvolutionError, ServiceError
from headrace.schemas.event import EventSpec

_TIMEOUT_S = 10.0
_NOT_FOUND, _CONFLICT = 404, 409
_CONTENT = {"Content-Type": "application/vnd.schemaregistry.v1+json"}


class SchemaRegistry:
    """One registry; ids and schemas are asked for once and kept, for an id never changes its schema.

    Args:
        url: with user and password in it where the registry wants them.
        transport: another way to send requests, for tests.
    """

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, transport=transport)
        self._schemas: dict[int, Mapping[str, Any] | None] = {}

    def register(self, spec: EventSpec) -> int:
        """The id of the event's schema, registered when it is new.

        Raises:
            EvolutionError: the registry refuses the schema as incompatible.
            ServiceError: the registry does not answer as it should.
        """
        path = f"/subjects/{spec.topic}-value/versions"
        answer = self._ask("POST", path, orjson.dumps({"schema": orjson.dumps(spec.avro).decode()}))
        if answer.status_code == _CONFLICT:
            raise EvolutionError(
                f"event {spec.name}: the schema registry refuses it: {answer.text}; keep old fields readable"
            )
        return int(self._content(answer)["id"])

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
        try:
            return self._client.request(method, path, content=content, headers=_CONTENT)
        except httpx.HTTPError as exc:
            raise ServiceError(
                f"schema registry {self._client.base_url}: {exc!r}; check its URL and that it runs"
            ) from exc

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise ServiceError(f"schema registry {answer.request.url}: {answer.status_code} {answer.text}")
        content: dict[str, Any] = orjson.loads(answer.content)
        return content
