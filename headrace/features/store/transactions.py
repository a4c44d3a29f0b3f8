"""Transactions that are applied only if certain hashes, the guards, have the expected fields: WATCH, MULTI, EXEC.

EXEC is sent only after the guards' fields have arrived and been accepted; if a guard changes later, EXEC does nothing.
The commands are sent in the meantime.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import hiredis

from headrace.features.store.client import ResponseError

Held: TypeAlias = list[list[bytes | None]]
"""Fields of a call's guards: (guards, fields)."""
Packed: TypeAlias = bytes | memoryview
"""One or more packed commands."""

_SEND_BYTES = 1 << 15
"""Approximate bytes sent at a time, so that Redis works while the rest is packed."""

_EXEC, _DISCARD = (hiredis.pack_command((name,)) for name in ("EXEC", "DISCARD"))


@dataclass(frozen=True, slots=True)
class Guarded:
    """Commands that are applied together if `accepts` returns True for the `fields` of the hashes at `guards`.

    `commands` packs and counts the commands; it is called again if the connection breaks.
    """

    guards: Sequence[bytes]
    fields: tuple[str, ...]
    accepts: Callable[[Held], bool]
    commands: Callable[[], tuple[Iterable[Packed], int]]


def carry_out(pool: Any, calls: Iterable[Guarded], made: list[Guarded]) -> list[tuple[Held, bool]]:
    """Run `calls` over one connection of a pool; returns each call's guard fields, and whether it was applied.

    Calls drawn from `calls` are appended to `made`. Raises redis-py's errors.

    sent       guards 1, commands 1 ...      EXEC 1, guards 2, commands 2 ...      EXEC 2
    answered           guards 1                      EXEC 1, guards 2
    """
    connection = pool.get_connection()
    done: list[tuple[Held, bool]] = []
    asked: tuple[Guarded, int] | None = None
    before: tuple[int, Held, bool] | None = None
    try:
        for call in chain(calls, (None,)):
            if call is not None:
                made.append(call)  # at once: it can be drawn only once, and the following steps may fail
            head: list[Packed] = []
            if asked is not None:
                if before is not None:
                    done.append(_ended(connection, *before))
                guard_fields = _answer(connection, asked[0])
                before = (asked[1], guard_fields, asked[0].accepts(guard_fields))
                head.append(_EXEC if before[2] else _DISCARD)
            asked = None
            if call is not None:
                commands, count = call.commands()
                asked = (call, count)
                head += _question(call)
                for piece in in_pieces(chain(head, commands)):
                    connection.send_packed_command(piece, check_health=False)  # its PING would come in between
            elif head:
                connection.send_packed_command(head, check_health=False)
        if before is not None:
            done.append(_ended(connection, *before))
    except BaseException:
        connection.disconnect()  # unread replies may still arrive, and keys may be watched
        raise
    finally:
        pool.release(connection)
    return done


def in_pieces(commands: Iterable[Packed]) -> Iterator[list[Packed]]:
    """Group packed commands into chunks of about `_SEND_BYTES`, drawing them lazily."""
    waiting: list[Packed] = []
    size = 0
    for command in commands:
        waiting.append(command)
        size += len(command)
        if size >= _SEND_BYTES:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def reply_of(connection: Any) -> Any:
    """The next reply; error replies are returned, not raised."""
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc


def without_errors(replies: Iterable[Any]) -> Iterator[Any]:
    """Pass replies through, raising the first error reply."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
        yield reply


def _question(call: Guarded) -> list[Packed]:
    asks: list[tuple[Any, ...]] = [("HMGET", guard, *call.fields) for guard in call.guards]
    return [hiredis.pack_command(command) for command in (("WATCH", *call.guards), *asks, ("MULTI",))]


def _answer(connection: Any, call: Guarded) -> Held:
    """The guard fields: the replies after that to WATCH. The reply to MULTI is read later."""
    _, *guard_fields = without_errors([reply_of(connection) for _ in range(1 + len(call.guards))])
    return guard_fields


def _ended(connection: Any, count: int, guard_fields: Held, accepted: bool) -> tuple[Held, bool]:
    """Read the rest of a call's replies: to MULTI, to each of its `count` commands, and to EXEC or DISCARD."""
    *_, last = without_errors([reply_of(connection) for _ in range(count + 2)])
    if accepted and last is not None:
        list(without_errors(last))
    return guard_fields, accepted and last is not None
