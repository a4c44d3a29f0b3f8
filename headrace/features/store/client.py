"""redis-py behind one module: how its clients are opened, and its errors as ours.

No other module of the store imports redis, so that another client, or another version of this one, is changed here.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

from headrace.errors import StoreError, StoreUnavailableError
from headrace.features.store.url import StoreUrl
from headrace.redaction import redacted
from headrace.stack_state import EMBEDDED

TIMEOUT_S = 5.0
"""Seconds that one command, or one pipeline of them, may take before Redis counts as away."""
CONNECT_TIMEOUT_S = 2.0

DISCONNECTED = (driver.ConnectionError, driver.TimeoutError)
"""Errors after which it is unknown what the server has done."""
DRIVER_ERRORS = (driver.RedisError, driver.RedisClusterException)
PRIMARIES = RedisCluster.PRIMARIES
MovedError, NoScriptError, ResponseError = driver.MovedError, driver.NoScriptError, driver.ResponseError

_READ_BYTES = 1 << 18
"""Bytes asked of the socket at a time: a read of thousands of records is some MB."""

_ONE_OF_MANY = "this is one node of a cluster: write redis+cluster:// in the URL"
_AWAY = "check that Redis runs there and that its port can be reached from here"

_CREDENTIALS = "check user and password in the URL, where / ? # @ : and % must be percent-encoded"
_FORBIDDEN = "the user of the URL may not do this: it needs @read, @write, @transaction and @scripting, and +info"
_FULL = "raise its maxmemory (with the policy noeviction), or give views a ttl"
_NO_QUORUM = "the cluster has no quorum or lacks slots: see CLUSTER INFO"
_REPLICA = "this is a replica: a failover is under way, or the URL is wrong"

_ERRORS: tuple[tuple[type[Exception], type[StoreError], str], ...] = (
    (driver.AuthenticationError, StoreError, _CREDENTIALS),
    (driver.AuthorizationError, StoreError, "the user of the URL may not do this"),
    (
        driver.NoPermissionError,
        StoreError,
        _FORBIDDEN,
    ),
    (driver.ExternalAuthProviderError, StoreError, "check the credentials of the URL"),
    (driver.OutOfMemoryError, StoreError, _FULL),
    (driver.BusyLoadingError, StoreUnavailableError, "it loads its data from disk: wait"),
    (
        driver.MaxConnectionsError,
        StoreUnavailableError,
        "all connections of this process are in use: lower concurrency",
    ),
    (driver.ConnectionError, StoreUnavailableError, _AWAY),
    (driver.TimeoutError, StoreUnavailableError, f"it did not answer in time: {_AWAY}, and that it is not overloaded"),
    (driver.ReadOnlyError, StoreUnavailableError, _REPLICA),
    (driver.ClusterDownError, StoreUnavailableError, _NO_QUORUM),
    (driver.SlotNotCoveredError, StoreUnavailableError, _NO_QUORUM),
    (driver.TryAgainError, StoreUnavailableError, "the cluster moves slots: try again"),
    (driver.MovedError, StoreUnavailableError, "the cluster moves slots: try again"),
    (driver.AskError, StoreUnavailableError, "the cluster moves slots: try again"),
    (driver.RedisClusterException, StoreUnavailableError, _AWAY),
    (driver.RedisError, StoreError, "Redis 6.2 or newer is needed; the key space must be Headrace's own"),
)
"""redis-py's class -> ours and what to do; the first match counts."""

_REPLIES: tuple[tuple[str, type[StoreError], str], ...] = (
    ("OOM command not allowed", StoreError, _FULL),
    ("NOPERM ", StoreError, _FORBIDDEN),
    ("READONLY ", StoreUnavailableError, _REPLICA),
    ("CLUSTERDOWN ", StoreUnavailableError, _NO_QUORUM),
    ("MISCONF ", StoreUnavailableError, "it cannot write to its disk: free space there, see its log"),
    ("DB index is out of range", StoreError, "use a smaller number in the URL, or raise its setting databases"),
    ("BUSY Redis", StoreUnavailableError, "a script of another client holds it up: wait, or SCRIPT KILL"),
)
"""Text of a reply -> ours and what to do, asked first: a script's error is a plain ResponseError that quotes it."""


def open_client(place: StoreUrl, timeout_s: float) -> Any:
    """redis-py's client for `place`; that of a cluster asks its node for the others.

    Raises:
        redis.RedisError: no node of the cluster answers.
    """
    # One quick retry revives an idle connection that the server had closed; waiting is the caller's business.
    options: dict[str, Any] = {
        "protocol": 2,
        "socket_read_size": _READ_BYTES,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_S, timeout_s),
        "retry": Retry(NoBackoff(), 1),
    }
    if place.url.startswith(EMBEDDED):
        from headrace.local.embedded_url import client_options

        return redis.Redis.from_url("redis://", **options, **client_options(place.url), until_s=_connect_until_s)
    return (RedisCluster if place.is_cluster else redis.Redis).from_url(place.url, **options)


def store_error(exc: Exception, place: StoreUrl, doing: str) -> StoreError:
    """redis-py's `exc` as an error of ours; `doing` says what was tried."""
    by_text = [(error, advice) for text, error, advice in _REPLIES if text in str(exc)]
    by_class = [(error, advice) for kind, error, advice in _ERRORS if isinstance(exc, kind)]
    error, advice = (by_text + by_class)[0]
    if isinstance(exc, driver.MovedError | driver.ClusterCrossSlotError) and not place.is_cluster:
        error, advice = StoreError, _ONE_OF_MANY
    reason = redacted(f"{type(exc).__name__}: {exc}", place.url)
    return error(f"{doing}: Redis at {place.shown} failed ({reason}); {advice}")


_connecting = threading.local()


@contextmanager
def connecting_until(deadline_s: float | None) -> Iterator[None]:
    """Within the block, this thread waits for an embedded Redis that is away until then, of `time.monotonic`."""
    _connecting.until_s = math.inf if deadline_s is None else deadline_s
    try:
        yield
    finally:
        _connecting.until_s = math.inf


def _connect_until_s() -> float:
    """The moment of this thread's `connecting_until`; infinity outside of its block."""
    return float(getattr(_connecting, "until_s", math.inf))


SEND_S_MIN = 0.001
"""Least time that a command gets: zero would make the socket non-blocking."""


@contextmanager
def bounded(connection: Any, deadline_s: float | None) -> Iterator[None]:
    """Within the block, `connection` waits for Redis no longer than until `deadline_s`, of `time.monotonic`.

    A wait for a part of a reply may end later than that by the time that was left when the block began.
    """
    if deadline_s is None:
        yield
        return
    left_s = max(deadline_s - time.monotonic(), SEND_S_MIN)
    if connection.socket_timeout is None or left_s < connection.socket_timeout:
        connection._sock.settimeout(left_s)  # noqa: SLF001 - redis-py has one time-out a connection
    try:
        yield
    finally:
        if connection._sock is not None:  # noqa: SLF001
            connection._sock.settimeout(connection.socket_timeout)  # noqa: SLF001


def receive_into(socket: Any, buffer: memoryview) -> int:
    """Number of bytes received into `buffer`, at least one.

    Raises:
        redis.TimeoutError, redis.ConnectionError: as redis-py's own reads do.
    """
    try:
        count: int = socket.recv_into(buffer)
    except TimeoutError as exc:
        raise driver.TimeoutError("Timeout reading from the socket") from exc
    except OSError as exc:
        raise driver.ConnectionError(f"Error while reading from the socket: {exc}") from exc
    if not count:
        raise driver.ConnectionError("Connection closed by server")
    return count
