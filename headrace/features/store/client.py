"""The only module of the store that imports redis-py: it opens clients and translates errors.

Another client library, or another version of redis-py, needs changes only here.
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
"""Time-out in seconds of a command or a pipeline, after which Redis counts as unavailable."""
CONNECT_TIMEOUT_S = 2.0

DISCONNECTED = (driver.ConnectionError, driver.TimeoutError)
"""Errors that leave it unknown what the server has done."""
DRIVER_ERRORS = (driver.RedisError, driver.RedisClusterException)
PRIMARIES = RedisCluster.PRIMARIES
MovedError, NoScriptError, ResponseError = driver.MovedError, driver.NoScriptError, driver.ResponseError

_READ_BYTES = 1 << 18
"""Maximum bytes per socket read; a read of thousands of records is some MB."""

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
"""redis-py's class -> our class and what to do; the first match counts."""

_REPLIES: tuple[tuple[str, type[StoreError], str], ...] = (
    ("OOM command not allowed", StoreError, _FULL),
    ("NOPERM ", StoreError, _FORBIDDEN),
    ("READONLY ", StoreUnavailableError, _REPLICA),
    ("CLUSTERDOWN ", StoreUnavailableError, _NO_QUORUM),
    ("MISCONF ", StoreUnavailableError, "it cannot write to its disk: free space there, see its log"),
    ("DB index is out of range", StoreError, "use a smaller number in the URL, or raise its setting databases"),
    ("BUSY Redis", StoreUnavailableError, "a script of another client holds it up: wait, or SCRIPT KILL"),
)
"""Text of an error reply -> our class and what to do. Takes precedence over `_ERRORS`, since an error inside a script
is a plain ResponseError that quotes the text.
"""


def open_client(place: StoreUrl, timeout_s: float) -> Any:
    """Open redis-py's client for `place`; a cluster's client asks the given node for the other nodes.

    Raises:
        redis.RedisError: no node of the cluster answers.
    """
    # One immediate retry replaces an idle connection that the server has closed; longer waits are left to the caller.
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
    """Translate redis-py's `exc` to our error; `doing` names the operation that failed."""
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
    """Within the block, this thread waits for an unavailable embedded Redis until `deadline_s`, of `time.monotonic`."""
    _connecting.until_s = math.inf if deadline_s is None else deadline_s
    try:
        yield
    finally:
        _connecting.until_s = math.inf


def _connect_until_s() -> float:
    """The deadline of this thread's `connecting_until`, infinity outside of its block."""
    return float(getattr(_connecting, "until_s", math.inf))


SEND_S_MIN = 0.001
"""Minimum time-out of a command, since zero would make the socket non-blocking."""


@contextmanager
def bounded(connection: Any, deadline_s: float | None) -> Iterator[None]:
    """Within the block, limit the socket time-out of `connection` to the time left until `deadline_s`.

    `deadline_s` is a time of `time.monotonic`; None leaves the time-out unchanged. Each socket call gets the time left
    when the block began, so a reply that arrives in parts may end later.
    """
    if deadline_s is None:
        yield
        return
    left_s = max(deadline_s - time.monotonic(), SEND_S_MIN)
    if connection.socket_timeout is None or left_s < connection.socket_timeout:
        connection._sock.settimeout(left_s)  # noqa: SLF001 - redis-py has a single time-out per connection
    try:
        yield
    finally:
        if connection._sock is not None:  # noqa: SLF001
            connection._sock.settimeout(connection.socket_timeout)  # noqa: SLF001


def receive_into(socket: Any, buffer: memoryview) -> int:
    """Receive at least one byte into `buffer`; returns the number of bytes.

    Raises:
        redis.TimeoutError, redis.ConnectionError: like redis-py's own reads.
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
