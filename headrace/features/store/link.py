"""Connections to Redis, a single server or a cluster: reads, scripts and guarded transactions.

redis-py's errors are raised as our own. Thread-safe: redis-py's pool gives each call its own connection.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self, TypeAlias

import hiredis

from headrace.features.store.client import (
    DISCONNECTED,
    DRIVER_ERRORS,
    PRIMARIES,
    TIMEOUT_S,
    NoScriptError,
    bounded,
    connecting_until,
    open_client,
    store_error,
)
from headrace.features.store.cluster import Command, by_hash_tag, send_to_cluster
from headrace.features.store.transactions import Guarded, Held, carry_out, in_pieces, reply_of, without_errors
from headrace.features.store.url import parse_store_url
from headrace.features.store.wire import NotValuesError, read_values
from headrace.kernels.spans import Values, values_of

KEYS_MAX = 10_000
"""Maximum keys in one MGET; more would block other clients for over 10 ms."""

_TOGETHER_BYTES = 1 << 13
"""Packed requests of up to this many bytes in total are sent in one piece."""

_Call: TypeAlias = tuple[Sequence[bytes], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and its name in error messages."""

    name: str
    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


class RedisLink:
    """A thread-safe connection pool for `url`: `redis://`, `rediss://`, `unix://`, `embedded://`, or a cluster's.

    A cluster's URL is `redis+cluster://host:port` (TLS: `rediss+cluster://`) of any node, which reports the others.
    `embedded://DIR` is the Redis of a folder; its address is looked up at each connect. No connection is opened before
    the first command.

    Raises:
        StoreError: `url` does not identify a Redis.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._place = parse_store_url(url)
        self._timeout_s = timeout_s
        self._opening = threading.Lock()
        self._client: Any = None

    @property
    def shown_url(self) -> str:
        """The URL of Redis without secrets."""
        return self._place.shown

    @property
    def cluster(self) -> bool:
        """Whether Redis is a cluster."""
        return self._place.is_cluster

    @property
    def client(self) -> Any:
        """redis-py's client, created on first use.

        Raises:
            StoreUnavailableError: no node of the cluster answers.
        """
        if self._client is None:
            with self._opening, self.errors("connecting"):
                self._client = self._client or open_client(self._place, self._timeout_s)
        return self._client

    @contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Translate redis-py's errors raised in the block; `doing` names the operation."""
        try:
            yield
        except DRIVER_ERRORS as exc:
            raise store_error(exc, self._place, doing) from exc

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, None for missing keys, in one round trip per `KEYS_MAX` keys.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        with self.errors(f"reading {len(keys)} records"):
            if self.cluster:
                return self._mget_cluster(keys)
            values: list[bytes | None] = []
            for start in range(0, len(keys), KEYS_MAX):
                values += self.client.mget(keys[start : start + KEYS_MAX])
            return values

    def values(
        self, requests: Sequence[bytes], counts: Sequence[int], deadline_s: float | None = None
    ) -> Iterator[Values]:
        """Replies to packed MGETs of `counts` keys, in one round trip; a reply is valid until the next one.

        Redis works on the next request while the caller works on a reply. `deadline_s`, a time of `time.monotonic`, is
        the deadline for the replies, including retries.

        Raises:
            StoreUnavailableError: Redis does not answer, or not in time.
        """
        done = 0
        with self.errors(f"reading {sum(counts)} records"):
            try:
                for values in self._values(requests, counts, deadline_s):
                    done += 1
                    yield values
            except DISCONNECTED:  # retry once, as redis-py does for single commands
                if deadline_s is not None and time.monotonic() >= deadline_s:
                    raise
                yield from self._values(requests[done:], counts[done:], deadline_s)
            except NotValuesError:  # redis-py parses the reply, and raises its error
                yield from map(values_of, without_errors(self._replies(requests[done:])))

    def field(self, key: str, name: str, doing: str, deadline_s: float | None = None) -> bytes | None:
        """The field `name` of the hash at `key`, None if it is missing; `doing` names the operation in errors.

        `deadline_s`, a time of `time.monotonic`, is the deadline for the reply of a single server, including retries. A
        cluster ignores it.

        Raises:
            StoreUnavailableError: Redis does not answer, or not in time.
        """
        with self.errors(doing):
            value: bytes | None
            if self.cluster or deadline_s is None:
                value = self.client.hget(key, name)
                return value
            try:
                value = self._field(key, name, deadline_s)
            except DISCONNECTED:  # retry once, as redis-py does
                if time.monotonic() >= deadline_s:
                    raise
                value = self._field(key, name, deadline_s)
            return value

    def hashes(self, keys: Sequence[bytes]) -> list[dict[bytes, bytes]]:
        """The hash at each of `keys`, empty for missing keys, in one round trip.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        with self.errors(f"reading {len(keys)} hashes"):
            if self.cluster:
                flat = self._cluster_replies([("HGETALL", key) for key in keys], keys)
                return [dict(zip(reply[::2], reply[1::2], strict=True)) for reply in flat]
            with self.client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hgetall(key)
                return list(pipeline.execute())

    def unlink(self, keys: Sequence[bytes]) -> int:
        """Delete `keys`; returns how many existed.

        Raises:
            StoreUnavailableError: Redis does not answer; some keys may have been deleted.
        """
        with self.errors(f"deleting {len(keys)} keys"):
            if not self.cluster:
                return int(self.client.unlink(*keys))
            parts = [[keys[index] for index in indexes] for indexes in by_hash_tag(keys).values()]
            return sum(self._cluster_replies([("UNLINK", *part) for part in parts], [part[0] for part in parts]))

    def run(self, script: Script, calls: Iterable[_Call]) -> list[Any]:
        """Run `script` for each (keys, arguments) of `calls`; returns the replies. One round trip on a single server.

        Calls are sent while later ones are drawn from `calls`.

        Each call is atomic, but the calls together are not: after an error some may have run and others not.

        Raises:
            StoreUnavailableError: Redis does not answer; which calls ran is unknown.
            StoreError: a call failed.
        """
        with self.errors(script.name):
            made, replies = self._run_loaded(script, calls)
            unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                self.client.script_load(script.text)
                _, again = self._run_loaded(script, [made[index] for index in unknown])
                for index, reply in zip(unknown, again, strict=True):
                    replies[index] = reply
            return list(without_errors(replies))

    def guarded(self, doing: str, calls: Iterable[Guarded]) -> list[tuple[Held, bool]]:
        """Run guarded transactions on a single server; returns each call's guard fields, and whether it was applied.

        Each call is all or nothing: its guards are watched, and EXEC is sent only once their fields have been accepted.
        The commands of a call are sent while the next call is drawn from `calls`.

        Raises:
            StoreUnavailableError: Redis does not answer; which calls were applied is unknown.
            StoreError: Redis rejected a command.
        """
        made: list[Guarded] = []
        remaining = iter(calls)
        with self.errors(doing):
            try:
                return carry_out(self.client.connection_pool, remaining, made)
            except DISCONNECTED:  # retry once, as redis-py does for its own pipelines
                return carry_out(self.client.connection_pool, chain(list(made), remaining), [])

    def info(self, section: str) -> dict[str, dict[str, Any]]:
        """A section of INFO, by node; on a cluster, for each primary.

        Raises:
            StoreUnavailableError: Redis does not answer.
            StoreError: the user lacks the permission.
        """
        with self.errors(f"INFO {section}"):
            if not self.cluster:
                return {self.shown_url: self.client.info(section)}
            by_node = self.client.info(section, target_nodes=PRIMARIES)
            is_one = not all(isinstance(value, dict) for value in by_node.values())
            return {self.shown_url: by_node} if is_one else by_node

    def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run_loaded(self, script: Script, calls: Iterable[_Call]) -> tuple[list[_Call], list[Any]]:
        """The calls and their replies, including error replies."""
        made: list[_Call] = []
        if self.cluster:
            made.extend(calls)
            commands: list[Command] = [("EVALSHA", script.sha, len(keys), *keys, *given) for keys, given in made]
            return made, send_to_cluster(self.client, commands, [keys[0] for keys, _ in made])
        remaining = iter(calls)
        try:
            return made, list(self._replies(_commands(script, remaining, made)))
        except DISCONNECTED:  # retry once, as redis-py does for its own pipelines
            again: list[_Call] = []
            return again, list(self._replies(_commands(script, chain(made, remaining), again)))

    def _field(self, key: str, name: str, deadline_s: float) -> Any:
        with self._connection(deadline_s) as connection, bounded(connection, deadline_s):
            connection.send_command("HGET", key, name)
            return connection.read_response()

    def _values(self, requests: Sequence[bytes], counts: Sequence[int], deadline_s: float | None) -> Iterator[Values]:
        with self._connection(deadline_s) as connection, bounded(connection, deadline_s):
            # A small read is one send, which is one system call and wakes Redis once. A large read is sent in parts, so
            # that Redis can start.
            joined = [b"".join(requests)] if sum(map(len, requests)) <= _TOGETHER_BYTES else requests
            connection.send_packed_command(joined)
            yield from read_values(connection, counts)

    def _replies(self, commands: Iterable[bytes]) -> Iterator[Any]:
        """Send packed commands over one connection while later ones are packed; then yield the replies, also errors."""
        with self._connection() as connection:
            count = 0
            for piece in in_pieces(commands):
                count += len(piece)
                connection.send_packed_command(piece, check_health=False)  # its PING would come in between
            for _ in range(count):
                yield reply_of(connection)

    @contextmanager
    def _connection(self, deadline_s: float | None = None) -> Iterator[Any]:
        """A connection of the pool, closed if the block raises."""
        pool = self.client.connection_pool
        with connecting_until(deadline_s):
            connection = pool.get_connection()
        try:
            yield connection
        except BaseException:
            connection.disconnect()  # unread replies may still arrive
            raise
        finally:
            pool.release(connection)

    def _mget_cluster(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """`mget` on a cluster: one MGET per hash tag and `KEYS_MAX` keys, on all nodes in parallel."""
        parts = [
            indexes[start : start + KEYS_MAX]
            for indexes in by_hash_tag(keys).values()
            for start in range(0, len(indexes), KEYS_MAX)
        ]
        commands: list[Command] = [("MGET", *[keys[index] for index in part]) for part in parts]
        values: list[bytes | None] = [None] * len(keys)
        replies = self._cluster_replies(commands, [keys[part[0]] for part in parts])
        for part, part_values in zip(parts, replies, strict=True):
            for index, value in zip(part, part_values, strict=True):
                values[index] = value
        return values

    def _cluster_replies(self, commands: Sequence[Command], keys: Sequence[bytes]) -> list[Any]:
        return list(without_errors(send_to_cluster(self.client, commands, keys)))


def _commands(script: Script, calls: Iterable[_Call], made: list[_Call]) -> Iterator[bytes]:
    """Pack the script's commands; calls drawn from `calls` are appended to `made`."""
    for call in calls:
        made.append(call)
        keys, arguments = call
        # hiredis packs directly, whereas redis-py would inspect each argument first.
        yield hiredis.pack_command(("EVALSHA", script.sha, len(keys), *keys, *arguments))
