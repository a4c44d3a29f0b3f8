"""Columns of the impression that come from a request's context, checked against the event's declaration."""

from collections.abc import Mapping
from typing import Annotated, Any

import orjson
from pydantic import TypeAdapter, ValidationError

from headrace.schemas import EventSpec
from headrace.serving.refusals import Refusal


class ContextColumn:
    """A column of the event that comes from a request's context."""

    def __init__(self, name: str, spec: EventSpec) -> None:
        field_info = spec.event.model_fields[name]
        self._name = name
        self._event = spec.name
        self._adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field_info.annotation, field_info])  # type: ignore[arg-type]  # made at run time
        self._is_required = field_info.is_required() and name not in spec.optional
        self._default = None if field_info.is_required() else field_info.get_default(call_default_factory=True)

    @property
    def schema(self) -> tuple[dict[str, Any], bool]:
        """JSON schema of the values, and whether a value is required."""
        return self._adapter.json_schema(), self._is_required

    def value(self, context: Mapping[str, Any]) -> Any:
        """Return the value to log.

        Raises:
            Refusal: 422, the value is missing or does not fit the event.
        """
        where = f"context.{self._name}"
        if self._name not in context:
            if not self._is_required:
                return self._default
            detail = f"context has no {self._name!r}"
            raise Refusal(422, "invalid_request", detail, f"the event {self._event} logs it: give it", where)
        fix = f"send it as event {self._event} declares it"
        value = context[self._name]
        if isinstance(value, int) and not -(2**63) <= value < 2**63:  # no column holds it
            raise Refusal(422, "invalid_request", f"{where}: an integer beyond 64 bits", fix, where)
        try:
            return self._adapter.validate_json(orjson.dumps(value), strict=True)
        except ValidationError as exc:
            detail = f"{where}: {exc.errors(include_url=False)[0]['msg']}"
            raise Refusal(422, "invalid_request", detail, fix, where) from exc
