"""`Client` and `AsyncClient`: a service's routes as methods, over persistent connections.

Both use the calls of call.py and differ in how they wait. Both are safe to share, between threads or between tasks.
"""

import asyncio
import os
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack
from weakref import WeakKeyDictionary

import httpx

from headrace.client.answers import FeaturesAnswer, Key, RankAnswer, ScoreAnswer
from headrace.client.call import Call, features_call, rank_call, score_call
from headrace.client.engagements import Engagements, EngagementWriter
from headrace.errors import ConfigError, DeadlineError, ResponseError
from headrace.redaction import shown_url

if TYPE_CHECKING:  # loads the codecs, which a client without engagements does not need
    from headrace.schemas import Event

TIMEOUT_S = 1.0
"""Default deadline of a call in seconds, equal to the service's default."""
KEPT_S = 4.0
"""Seconds for which an idle connection is kept: uvicorn closes it after 5 s, possibly just as a call begins."""
PORT_MAX = 65_535
_API_KEY = re.compile("[!-~]([ -~]*[!-~])?|")

Answer = TypeVar("Answer")


class ScoreOptions(TypedDict, total=False):
    """Options of `score`, and, together with `k`, of `rank`.

    Args:
        context: values of this request that the model or the impression reads in addition to the features.
        event_time: as-of time of the features, a datetime or µs since 1970 UTC; default: the service's clock.
        request_id: default: a new one. Sent as `X-Request-Id` too.
        min_version, exact_version: oldest model version that may answer, or the one that must; else `VersionError`.
        timeout_s: deadline of the call in seconds, including retries and pauses; default: the client's.
    """

    context: Mapping[str, str | int | float | bool | None]
    event_time: datetime | int
    request_id: str
    min_version: int
    exact_version: int
    timeout_s: float


class RankOptions(ScoreOptions, total=False):
    """Options of `rank`: those of `score`, and `k`, how many candidates to return (default: all)."""

    k: int


class _Base:
    """Arguments and connection settings that both clients share."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        connections_max: int = 64,
        verify: ssl.SSLContext | bool = True,
        engagements: Engagements | None = None,
    ) -> None:
        if api_key is not None and not (isinstance(api_key, str) and _API_KEY.fullmatch(api_key)):
            raise ConfigError("api_key: holds what no header can; give visible ASCII characters")  # not shown
        self.url = url
        self._timeout_s = timeout_s
        self._writer = None if engagements is None else EngagementWriter(engagements)
        self._pid = os.getpid()
        self._of_parents: list[Any] = []  # httpx clients of processes that this one was forked from
        self._options: dict[str, Any] = {
            "base_url": _checked(url),
            "headers": {} if api_key is None else {"x-api-key": api_key},
            "limits": httpx.Limits(
                max_connections=connections_max, max_keepalive_connections=connections_max, keepalive_expiry=KEPT_S
            ),
            "verify": verify,
        }

    def _rank(self, entity: Mapping[str, Key], candidates: Sequence[Key], options: RankOptions) -> Call[RankAnswer]:
        return rank_call(entity, candidates, self._timeout_s, options)

    def _score(self, entity: Mapping[str, Key], candidates: Sequence[Key], options: ScoreOptions) -> Call[ScoreAnswer]:
        return score_call(entity, candidates, self._timeout_s, options)

    def _features(self, view: str, key: Key | Sequence[Key], timeout_s: float | None) -> Call[FeaturesAnswer]:
        return features_call(view, key, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def _engaged(self, request_id: str, candidate: Key, fields: Mapping[str, Any]) -> "Event":
        if self._writer is None:
            raise ConfigError(
                "engaged: the client has no broker to write to; make it with "
                "engagements=Engagements(YourEvent, candidate=..., brokers=...)"
            )
        return self._writer.write(request_id, candidate, fields)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _is_forked(self) -> bool:
        """Return whether this is another process than at the last call; its parent uses the connections too."""
        is_forked = os.getpid() != self._pid
        self._pid = os.getpid()
        return is_forked


class Client(_Base):
    """A client of one service; a context manager that closes its connections.

    >>> from headrace import Client
    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     answer = client.rank({"customer_id": 17850}, ["22423", "85123A"], k=1)
    ...     answer.ranked[0].candidate, answer.model_version
    ('85123A', 12)

    A call is retried within its deadline if the service cannot be reached, or refuses it with a header `Retry-After`.
    All tries share one request id.

    Args:
        url: address of the service, such as "http://127.0.0.1:8000".
        api_key: sent as `X-API-Key`.
        timeout_s: deadline of a call in seconds, also sent as `X-Request-Timeout-Ms`.
        connections_max: most connections, and so concurrent calls; further calls wait within their deadline.
        verify: TLS context for https; False disables the check of certificates.
        engagements: event and broker that `engaged` writes to.

    Raises:
        ConfigError: `url` is not an http or https URL, or `api_key` cannot be sent in a header.
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._own_http = httpx.Client(**self._options)

    def rank(self, entity: Mapping[str, Key], candidates: Sequence[Key], **options: Unpack[RankOptions]) -> RankAnswer:
        """Rank `candidates` for `entity` (key column -> value); logged by the service as one impression.

        Raises:
            ClientError: one of its classes in `headrace.errors`, as for all methods.
        """
        return self._answer(self._rank(entity, candidates, options))

    def score(
        self, entity: Mapping[str, Key], candidates: Sequence[Key], **options: Unpack[ScoreOptions]
    ) -> ScoreAnswer:
        """Score `candidates` for `entity`, in their order; not logged."""
        return self._answer(self._score(entity, candidates, options))

    def features(self, view: str, key: Key | Sequence[Key], *, timeout_s: float | None = None) -> FeaturesAnswer:
        """Read one record of `view` as of now; a composite key is a sequence of its parts."""
        return self._answer(self._features(view, key, timeout_s))

    def engaged(self, request_id: str, candidate: Key, /, **fields: Any) -> "Event":
        """Write the event that labels `candidate` of a ranking, and return it once the broker has acknowledged it.

        `fields` are the event's other columns. Unless given, its time is now and its id is a new one.

        Raises:
            ConfigError: the client was made without `engagements`.
            SchemaError: the values do not fit the event.
            SourceError: the broker refused it, or did not acknowledge it within the `timeout_s` of `Engagements`.
            ClientError: the client was closed.
        """
        return self._engaged(request_id, candidate, fields)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._close_writer()

    @property
    def _http(self) -> httpx.Client:
        """The connections of this process; those that it inherited are kept unused, for closing them may write."""
        if self._is_forked() and not self._own_http.is_closed:
            self._of_parents.append(self._own_http)
            self._own_http = httpx.Client(**self._options)
        return self._own_http

    def _answer(self, call: Call[Answer]) -> Answer:
        while True:
            try:
                return call.answer(self._http.send(call.request(self._http)))
            except httpx.TimeoutException as exc:
                raise call.too_late() from exc
            except (httpx.RequestError, ResponseError) as exc:
                time.sleep(call.pause_after(exc))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Base):
    """A client for asyncio; an async context manager. Arguments, methods and errors are those of `Client`."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._is_closed = False
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    async def rank(
        self, entity: Mapping[str, Key], candidates: Sequence[Key], **options: Unpack[RankOptions]
    ) -> RankAnswer:
        """See `Client.rank`."""
        return await self._answer(self._rank(entity, candidates, options))

    async def score(
        self, entity: Mapping[str, Key], candidates: Sequence[Key], **options: Unpack[ScoreOptions]
    ) -> ScoreAnswer:
        """See `Client.score`."""
        return await self._answer(self._score(entity, candidates, options))

    async def features(self, view: str, key: Key | Sequence[Key], *, timeout_s: float | None = None) -> FeaturesAnswer:
        """See `Client.features`."""
        return await self._answer(self._features(view, key, timeout_s))

    async def engaged(self, request_id: str, candidate: Key, /, **fields: Any) -> "Event":
        """See `Client.engaged`; waits for the broker in a thread."""
        return await asyncio.to_thread(self._engaged, request_id, candidate, fields)

    async def close(self) -> None:
        """Close the connections of the running event loop, and make no more."""
        self._is_closed = True
        await self._http.aclose()
        self._close_writer()

    @property
    def _http(self) -> httpx.AsyncClient:
        """The connections of the running event loop; those of a loop that ended, or of the parent, are not used."""
        if self._is_forked():
            self._of_parents.append(self._by_loop)
            self._by_loop = WeakKeyDictionary()
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = httpx.AsyncClient(**self._options)
        return self._by_loop[loop]

    async def _answer(self, call: Call[Answer]) -> Answer:
        if self._is_closed:
            raise call.closed()
        try:
            async with asyncio.timeout(max(call.remaining_s, 0)):
                while True:
                    try:
                        return call.answer(await self._http.send(call.request(self._http)))
                    except httpx.TimeoutException as exc:
                        raise call.too_late() from exc
                    except (httpx.RequestError, ResponseError) as exc:
                        await asyncio.sleep(call.pause_after(exc))
        except DeadlineError:
            raise
        except TimeoutError as exc:
            raise call.too_late() from exc

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"service URL {shown_url(url)!r}: write http://host:port or https://host:port")
    if parsed.port is not None and not 1 <= parsed.port <= PORT_MAX:
        raise ConfigError(f"service URL {shown_url(url)!r}: port {parsed.port} is none of 1 to {PORT_MAX}")
    return parsed
