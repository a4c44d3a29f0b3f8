"""Refusals: the error responses of the service, and the mapping of exceptions to them."""

import difflib
import json
from collections.abc import Collection, Mapping
from typing import TypeVar

import orjson
import structlog
from pydantic import BaseModel, ValidationError
from starlette.types import Send

from headrace.errors import HeadraceError, LayoutError, ModelError, SchemaError, StoreError, StoreUnavailableError
from headrace.schemas.fault_log import FaultLog
from headrace.serving.messages import ErrorResponse
from headrace.telemetry import REQUEST_ID

RETRY_AFTER_S = 1
STORE_AWAY = "the online store does not answer"
"""Message to callers while the store is unreachable; its address is only logged."""
LAYOUT_DIFFERS = "readers of a view get another version of it than this replica's"

STORE_FAULT = FaultLog("store_answers_again")
"""Fault of this process's store, as requests, probes and threads meet it."""
LAYOUT_FAULT = FaultLog("layout_fits_again")

log = structlog.get_logger(__name__)
Ask = TypeVar("Ask", bound=BaseModel)


class Refusal(Exception):  # noqa: N818  # it is an answer, not a fault
    """An error response: status, a stable word, what is wrong, what to do, and which field.

    `retry_after_s`: seconds after which a client may try again, for 409, 429 and 503; 0: retrying cannot help.
    """

    def __init__(
        self,
        status: int,
        error: str,
        detail: str,
        fix: str,
        field: str | None = None,
        *,
        retry_after_s: int = RETRY_AFTER_S,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self._retry_after_s = retry_after_s
        self.body = ErrorResponse(error=error, detail=detail, fix=fix, field=field)

    def to_bytes(self) -> bytes:
        """The response's JSON."""
        return orjson.dumps({**self.body.model_dump(), "request_id": REQUEST_ID.get()})

    def headers(self) -> dict[str, str]:
        """Headers besides the content type."""
        if self.status in {409, 429, 503} and self._retry_after_s:
            return {"retry-after": str(self._retry_after_s)}
        if self.status == 408:
            return {"connection": "close"}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}


def parse(model: type[Ask], body: bytes) -> Ask:
    """Parse `body` as `model`.

    Raises:
        Refusal: 422, naming the first wrong field.
    """
    try:
        ask = model.model_validate_json(body)
    except ValidationError as exc:
        field, fault, kind = _first_fault(exc)
        fix = "see /docs for the request's schema"
        if kind == "extra_forbidden":
            fix = (
                f"known fields: {', '.join(model.model_fields)}; nearest is {nearest(field[:64], model.model_fields)!r}"
            )
        raise Refusal(422, "invalid_request", f"{field}: {fault}", fix, field) from exc
    # Each name in the body is followed by a colon: if there are as many colons as names, no name occurs twice.
    objects = (getattr(ask, name) for name in ask.model_fields_set)
    names = len(ask.model_fields_set) + sum(len(each) for each in objects if isinstance(each, dict))
    if body.count(b":") != names:
        refuse_repeated(body)
    return ask


def refuse_repeated(body: bytes) -> None:
    """Check that no object of the JSON `body` has a name twice, of which some parsers take the first and some the last.

    Raises:
        Refusal: 422, an object has a name twice.
    """

    def distinct(pairs: list[tuple[str, object]]) -> None:
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise Refusal(422, "invalid_request", f"{name[:64]}: given twice", "give each field once", name[:64])
            names.add(name)

    json.loads(body, object_pairs_hook=distinct, parse_int=str, parse_float=str)


def _first_fault(exc: ValidationError) -> tuple[str, str, str]:
    """Return path, message and kind of the first fault; for a union, those of the branch that fits the value's type.

    A name that is no field comes before a field that is missing: it may be that field, misspelt.
    """
    faults = exc.errors(include_url=False)
    unknown = next((fault for fault in faults if fault["type"] == "extra_forbidden"), None)
    first = unknown if unknown is not None and faults[0]["type"] == "missing" else faults[0]
    field = path_of(first["loc"])
    same = [fault for fault in faults if path_of(fault["loc"]) == field]
    if len(same) == 1:
        return field, first["msg"].removeprefix("Value error, "), first["type"]
    meant = {int: "int", str: "str", float: "float"}.get(type(first["input"]), "")
    of_type = next((fault for fault in same if meant and str(fault["loc"][-1]).endswith(meant)), None)
    if of_type is not None:
        return field, of_type["msg"], of_type["type"]
    return field, f"is {_json_type(first['input'])}, not {' or '.join(_wanted(each['type']) for each in same)}", "union"


def _json_type(value: object) -> str:
    names = {bool: "true or false", float: "a number with a fraction", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _wanted(kind: str) -> str:
    """Describe the type that a branch of a union accepts, from the kind of its fault.

    >>> _wanted("string_type"), _wanted("int_type")
    ('text', 'an integer')
    """
    names = {"int": "an integer", "string": "text", "float": "a number", "bool": "true or false", "datetime": "a time"}
    return names.get(kind.partition("_")[0], kind)


def path_of(loc: tuple[int | str, ...]) -> str:
    """Format the path of a value in the body, without the names of union branches.

    >>> path_of(("candidates", 3, "constrained-int")), path_of(())
    ('candidates[3]', 'body')
    """
    path = ""
    for i, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
        elif i == 0:
            path = part
        elif part not in {"datetime", "int", "float", "str", "bool", "[key]"} and not part.startswith("constrained-"):
            path += f".{part}"
    return path or "body"


def nearest(name: str, names: Collection[str]) -> str:
    """Return the closest of `names` to `name`.

    >>> nearest("accounts", ["account", "offer"])
    'account'
    """
    return (difflib.get_close_matches(name, names, n=1, cutoff=0.0) or sorted(names))[0]


def too_large(body_bytes_max: int) -> Refusal:
    """The refusal of a body that is too long."""
    detail = f"the body is longer than {body_bytes_max} bytes"
    return Refusal(413, "body_too_large", detail, "send fewer candidates per request", "body")


def no_model() -> Refusal:
    """The refusal while no model is live."""
    return Refusal(503, "no_model", "no model is live in this replica yet", "publish one, or wait: see /readyz")


def version_not_live(field: str, version: int, live_version: int, *, may_come: bool) -> Refusal:
    """The refusal of a request for a version that is not in memory; `may_come`: this replica may load it later."""
    detail = f"{field} is {version}, live is {live_version}"
    fix = "try again after the seconds of Retry-After" if may_come else "ask for a version that /v1/model lists"
    retry_after_s = RETRY_AFTER_S if may_come else 0
    return Refusal(409, "version_not_live", detail, fix, field, retry_after_s=retry_after_s)


def store_away() -> Refusal:
    """The refusal while the store does not answer."""
    fix = f"try again after {RETRY_AFTER_S} s; the replica's log says more"
    return Refusal(503, "store_unavailable", STORE_AWAY, fix)


def refusal_of(exc: Exception, route: str) -> Refusal:
    """Convert an exception that ended a request to a refusal; faults of the service are logged."""
    match exc:
        case Refusal():
            return exc
        case LayoutError():
            log_store_fault(exc, route=route)
            return Refusal(503, "layout_differs", LAYOUT_DIFFERS, "wait for a replica of the view's present version")
        case StoreError():
            log_store_fault(exc, route=route)
            return store_away()
        case HeadraceError():
            log.error("request_failed", route=route, reason=str(exc), error=type(exc).__name__)
            # Texts of other errors, such as the store's, may name internal addresses.
            detail = str(exc) if isinstance(exc, ModelError | SchemaError) else "the request cannot be answered"
            return Refusal(500, "failed", detail, "see the replica's log")
    log.error("request_failed", route=route, error=type(exc).__name__, exc_info=exc)
    return Refusal(500, "internal", f"{type(exc).__name__} in {route}", "see the replica's log")


def log_store_fault(exc: HeadraceError, **fields: str) -> None:
    """Log that the store cannot be read, in few lines however long that lasts and however many requests meet it."""
    match exc:
        case LayoutError():
            LAYOUT_FAULT.failed("layout_differs", str(exc), level="error", **fields)
        case StoreUnavailableError():
            STORE_FAULT.failed("store_unavailable", str(exc), **fields)
        case _:  # a changed password, or a server that is not Redis: it answers, without data
            STORE_FAULT.failed("store_failed", str(exc), level="error", **fields)


async def send_refusal(refusal: Refusal, send: Send) -> None:
    """Answer an ASGI request with `refusal`."""
    await send_json(send, refusal.status, refusal.to_bytes(), refusal.headers())


async def send_json(
    send: Send, status: int, body: bytes, headers: Mapping[str, str], media_type: str = "application/json"
) -> None:
    """Answer an ASGI request with a body of JSON, or of another media type."""
    extra = [(name.encode(), value.encode()) for name, value in headers.items()]
    fixed = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *extra]})
    await send({"type": "http.response.body", "body": body})
