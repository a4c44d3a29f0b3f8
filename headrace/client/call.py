"""One call of the service, without I/O: what to send, what an answer means, and when to retry.

    call --> request --> answer -------------------> the answer's dataclass
              ^            | 429, 503, 409 with Retry-After, or no connection
              '-- pause <--' while the deadline allows; else the typed error

Retries are safe: all tries share one request id, by which training drops a ranking that was logged twice.
"""

import random
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from numbers import Integral
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
import orjson

from headrace.client.answers import FeaturesAnswer, Key, RankAnswer, ScoreAnswer
from headrace.errors import (
    ClientError,
    DeadlineError,
    InvalidRequestError,
    NotReachedError,
    OverloadedError,
    ResponseError,
    UnauthorizedError,
    UnavailableError,
    VersionError,
)

TIMEOUT_MS_MAX = 60_000
"""Longest deadline that the service accepts from a request, in milliseconds."""
TIMEOUT_S_MAX = 1e9
"""Longest deadline of a call, in seconds: sockets accept neither longer ones nor NaN."""
PAUSE_S = (0.02, 0.5)
"""First and longest pause of a call that finds no connection, in seconds; the pause doubles with each try."""
JITTER = 0.2
"""Largest random extension of a pause, as a share, so that clients refused together do not return together."""
RETRIED = frozenset({409, 429, 503})
"""Statuses that are retried if the answer has Retry-After."""
HEADER_ID = re.compile("[!-~]{1,128}")
"""Request ids that a header can carry; others are sent in the body only."""
TEXT_CHARS_MAX = 200  # of an answer that is not JSON, shown in an error

_ERRORS: dict[int, type[ResponseError]] = {
    **dict.fromkeys((400, 404, 405, 408, 413, 422), InvalidRequestError),
    **dict.fromkeys((401, 403), UnauthorizedError),
    **dict.fromkeys((502, 503, 504), UnavailableError),
    409: VersionError,
    429: OverloadedError,
}

Answer = TypeVar("Answer")


class Remaining(dict[str, float]):
    """Timeouts of httpcore's phases (connect, pool, write, read); each is the time left until `deadline_s`."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__()
        self._deadline_s = deadline_s

    def get(self, _phase: str, _default: Any = None) -> Any:
        """Seconds left; called by httpcore at the start of each phase."""
        return max(self._deadline_s - time.monotonic(), 0.001)


class Call(Generic[Answer]):
    """One call, used by one thread or task.

    Args:
        timeout_s: deadline from now on, in seconds, for all tries together.
        read: converts the decoded body to the answer.
    """

    def __init__(
        self,
        method: str,
        path: str,
        read: Callable[[Mapping[str, Any]], Answer],
        *,
        timeout_s: float,
        body: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        self.request_id = request_id or uuid.uuid4().hex
        self.what = f"{method} {path}"
        if not isinstance(self.request_id, str):
            raise _not_sent(f"{self.what}: request_id {request_id!r}: give text")
        if not isinstance(timeout_s, int | float) or not timeout_s <= TIMEOUT_S_MAX:
            words = f"{self.what}: timeout_s {timeout_s!r}: give seconds, at most {TIMEOUT_S_MAX:g}"
            raise ClientError(words, request_id=self.request_id)
        self.timeouts = Remaining(time.monotonic() + timeout_s)
        self._method = method
        self._path = path
        self._read = read
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._tries = 0
        self._content = b"" if body is None else self._json({**body, "request_id": self.request_id})

    def _json(self, body: Mapping[str, Any]) -> bytes:
        try:
            return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as exc:
            raise ClientError(f"{self.what}: cannot be written as JSON: {exc}", request_id=self.request_id) from exc

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; not positive once it has passed."""
        return self._deadline_s - time.monotonic()

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request of the next try.

        Raises:
            DeadlineError: the deadline has passed.
            ClientError: `client` was closed.
        """
        if client.is_closed:
            raise self.closed()
        remaining_ms = int(self.remaining_s * 1_000)
        if remaining_ms < 1:
            raise self.too_late()
        self._tries += 1
        headers = {"x-request-timeout-ms": str(min(remaining_ms, TIMEOUT_MS_MAX))}
        if HEADER_ID.fullmatch(self.request_id):
            headers["x-request-id"] = self.request_id
        if self._content:
            headers["content-type"] = "application/json"
        if "opentelemetry.propagate" in sys.modules:  # the caller traces: the service continues its trace
            sys.modules["opentelemetry.propagate"].inject(headers)
        return client.build_request(
            self._method, self._path, content=self._content, headers=headers, extensions={"timeout": self.timeouts}
        )

    def answer(self, response: httpx.Response) -> Answer:
        """Convert a response to the answer.

        Raises:
            ResponseError: it is an error, or not an answer of this service.
            DeadlineError: the service gave up at the deadline.
        """
        if not response.is_success:
            raise self._error(response)
        try:
            body = orjson.loads(response.content)
            answer, version = self._read(body), response.headers.get("x-model-version")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as exc:
            raise self._unreadable(response) from exc
        if version is not None and version != str(body["model_version"]):
            raise self._unreadable(response)
        return answer

    def pause_after(self, error: httpx.RequestError | ResponseError) -> float:
        """Return the seconds to wait before the next try.

        Raises:
            ResponseError, NotReachedError: another try cannot help or would be too late.
        """
        if isinstance(error, ResponseError):
            if error.status not in RETRIED or error.retry_after_s is None:
                raise error
            pause_s = max(error.retry_after_s, PAUSE_S[0])
        else:
            pause_s = min(PAUSE_S[0] * 2 ** (self._tries - 1), PAUSE_S[1])
        pause_s *= 1 + random.uniform(0, JITTER)
        if pause_s < self.remaining_s:
            return pause_s
        if isinstance(error, ResponseError):
            raise error
        reason = str(error) or type(error).__name__
        words = (
            f"{self.what}: {reason}, {self._tries} tries within {self._timeout_s:g} s; check the URL and that it runs"
        )
        raise NotReachedError(words, request_id=self.request_id) from error

    def closed(self) -> ClientError:
        """The error of a call whose client was closed."""
        return ClientError(f"{self.what}: the client is closed; make another", request_id=self.request_id)

    def too_late(self, detail: str = "") -> DeadlineError:
        """The error of a call whose deadline has passed."""
        words = f"{self.what}: no answer within {self._timeout_s:g} s{detail}"
        return DeadlineError(words, request_id=self.request_id)

    def _error(self, response: httpx.Response) -> ClientError:
        try:
            body = orjson.loads(response.content)
            code, detail, fix, field = body["error"], body["detail"], body["fix"], body.get("field")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return self._unreadable(response)
        if code == "deadline_exceeded":
            return self.too_late(": the service gave up")
        status = response.status_code
        return _ERRORS.get(status, ResponseError)(
            f"{self._sent(response)}: {status} {code}: {detail}; {fix}",
            request_id=response.headers.get("x-request-id", self.request_id),
            status=status,
            code=code,
            detail=detail,
            fix=fix,
            field=field,
            retry_after_s=_retry_after_s(response),
        )

    def _sent(self, response: httpx.Response) -> str:
        """Method and path of the request, with the path that the client's URL may have."""
        return f"{self._method} {response.request.url.raw_path.decode()}"

    def _unreadable(self, response: httpx.Response) -> ResponseError:
        """The error for a body that is not this service's: a proxy's page, or another service."""
        status = response.status_code
        text = " ".join(response.text[:TEXT_CHARS_MAX].split())
        return _ERRORS.get(status, ResponseError)(
            f"{self._sent(response)}: {status} with a body that is no answer of Headrace: {text!r}; check the URL",
            request_id=self.request_id,
            status=status,
            code="unreadable",
            detail=text,
            retry_after_s=_retry_after_s(response),
        )


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds of the header Retry-After, a number or a date (RFC 9110, section 10.2.3), else None."""
    text = response.headers.get("retry-after", "")
    try:
        return max(float(text), 0.0) if text[:1].isdigit() else _until_s(parsedate_to_datetime(text))
    except ValueError:
        return None


def _until_s(moment: datetime) -> float:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((aware - datetime.now(UTC)).total_seconds(), 0.0)


def rank_call(
    entity: Mapping[str, Key], candidates: Sequence[Key], timeout_s: float, options: Mapping[str, Any]
) -> Call[RankAnswer]:
    """Build a call of rank; `options` are those of `Client.rank`."""
    return _model_call("/v1/rank", RankAnswer.read, _body(entity, candidates), timeout_s, options)


def score_call(
    entity: Mapping[str, Key], candidates: Sequence[Key], timeout_s: float, options: Mapping[str, Any]
) -> Call[ScoreAnswer]:
    """Build a call of score; `options` are those of `Client.score`."""
    return _model_call("/v1/score", ScoreAnswer.read, _body(entity, candidates), timeout_s, options)


def features_call(view: str, key: Key | Sequence[Key], *, timeout_s: float) -> Call[FeaturesAnswer]:
    """Build a call of features; a composite key is a sequence of its parts, in the order of the view's entity."""
    parts = list(key) if isinstance(key, Iterable) and not isinstance(key, str | bytes | bytearray) else [key]
    for part in (view, *(parts or [""])):
        if not isinstance(part, str | Integral) or isinstance(part, bool) or str(part) == "":
            raise _not_sent(f"GET /v1/features: {part!r} in view {view!r}, key {key!r}: give text or whole numbers")
    try:
        path = "/".join(_in_path(str(part)) for part in (view, *parts))
    except UnicodeEncodeError as exc:
        raise _not_sent(f"GET /v1/features: view {view!r}, key {key!r} cannot be written as UTF-8: {exc}") from exc
    return Call("GET", f"/v1/features/{path}", FeaturesAnswer.read, timeout_s=timeout_s)


def _not_sent(words: str) -> ClientError:
    """The error of a call whose arguments cannot be sent."""
    return ClientError(words, request_id="not sent")


def _in_path(part: str) -> str:
    """Quote one part of a path; a part of dots alone would change the path.

    >>> _in_path("a/b"), _in_path("..")
    ('a%2Fb', '%2E%2E')
    """
    return part.replace(".", "%2E") if part in {".", ".."} else quote(part, safe="")


def _model_call(
    path: str,
    read: Callable[[Mapping[str, Any]], Answer],
    body: Mapping[str, Any],
    timeout_s: float,
    options: Mapping[str, Any],
) -> Call[Answer]:
    given = {"timeout_s": timeout_s, **{name: value for name, value in options.items() if value is not None}}
    timeout_s, request_id = given.pop("timeout_s"), given.pop("request_id", None)
    return Call("POST", path, read, timeout_s=timeout_s, body={**body, **given}, request_id=request_id)


def _body(entity: Mapping[str, Key], candidates: Any) -> dict[str, Any]:
    """Build the fields of the body; an integer array is kept, which needs no object per candidate.

    Raises:
        ClientError: the entity is not a mapping, or the candidates are a single text or cannot be iterated.
    """
    if not isinstance(entity, Mapping):
        raise _not_sent(f"entity {entity!r}: give a mapping of key column to value, as {{'customer_id': 17850}}")
    if not isinstance(candidates, Iterable) or isinstance(candidates, str | bytes | bytearray):
        raise _not_sent(f"candidates {candidates!r}: give a list of keys")  # characters of a text would be ranked
    return {"entity": dict(entity), "candidates": candidates if _is_plain_array(candidates) else _listed(candidates)}


def _is_plain_array(candidates: Any) -> bool:
    """Return whether orjson can write them directly: a contiguous integer array in native byte order."""
    dtype = getattr(candidates, "dtype", None)
    is_whole = getattr(dtype, "kind", "") in {"i", "u"}
    return bool(is_whole and candidates.flags.c_contiguous and candidates.dtype.isnative)


def _listed(candidates: Iterable[Any]) -> list[Any]:
    """Return candidates as plain values; arrays and series, whose elements may not be plain, by `tolist`."""
    plain: list[Any] = candidates.tolist() if hasattr(candidates, "tolist") else list(candidates)
    return plain
