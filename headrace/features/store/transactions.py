"""Transactions that are carried out only if some hashes hold what is expected: WATCH, MULTI, and EXEC after a look.

EXEC is not sent before the guards' answer is here, so no command is ever carried out against it; and a guard that
changes after the answer makes EXEC do nothing. The commands are on their way meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import hiredis
import redis.exceptions as theirs

Held: TypeAlias = list[list[bytes | None]]
"""What the guards of a call held: (guards, fields)."""
Packed: TypeAlias = bytes | memoryview
"""One command or several, as Redis reads them."""

_SEND_BYTES = 1 << 15
"""Bytes of a pipeline that are sent while the rest is still made: Redis works on them meanwhile."""

_EXEC, _DISCARD = (hiredis.pack_command((name,)) for name in ("EXEC", "DISCARD"))


@dataclass(frozen=True, slots=True)
class Guarded:
    """Commands that are carried out together if `accepts` what `fields` of each hash of `guards` hold then.

    `commands` makes them, packed, and says how many they are; a second time if the connection broke.
    """

    guards: Sequence[bytes]
    fields: tuple[str, ...]
    accepts: Callable[[Held], bool]
    commands: Callable[[], tuple[Iterable[Packed], int]]


def carry_out(pool: Any, calls: Iterable[Guarded], made: list[Guarded]) -> list[tuple[Held, bool]]:
    """What the guards of each call held, and whether its commands were carried out; over one connection of a pool.

    What is drawn from `calls` is noted in `made`. Raises redis-py's errors.

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
                made.append(call)  # at once: it can be drawn only once, and what follows may break
            head: list[Packed] = []
            if asked is not None:
                if before is not None:
                    done.append(_ended(connection, *before))
                held = _answer(connection, asked[0])
                before = (asked[1], held, asked[0].accepts(held))
                head.append(_EXEC if before[2] else _DISCARD)
            asked = None
            if call is not None:
                commands, count = call.commands()
                asked = (call, count)
                head += _question(call)
                for piece in in_pieces(chain(head, commands)):
                    connection.send_packed_command(piece, check_health=False)  # its PING would come between
            elif head:
                connection.send_packed_command(head, check_health=False)
        if before is not None:
            done.append(_ended(connection, *before))
    except BaseException:
        connection.disconnect()  # replies may be under way that nobody will read, and keys watched
        raise
    finally:
        pool.release(connection)
    return done


def in_pieces(commands: Iterable[Packed]) -> Iterator[list[Packed]]:
    """Packed commands, as many together as are worth a call, and drawn no sooner."""
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
    """The next reply, or the error that it is."""
    try:
        return connection.read_response()
    except theirs.ResponseError as exc:
        return exc


def without_errors(replies: Iterable[Any]) -> Iterator[Any]:
    """The replies; an error among them is raised."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
        yield reply


def _question(call: Guarded) -> list[Packed]:
    asks: list[tuple[Any, ...]] = [("HMGET", guard, *call.fields) for guard in call.guards]
    return [hiredis.pack_command(command) for command in (("WATCH", *call.guards), *asks, ("MULTI",))]


def _answer(connection: Any, call: Guarded) -> Held:
    """The replies to the question but the last, of MULTI."""
    _, *held = without_errors([reply_of(connection) for _ in range(1 + len(call.guards))])
    return held


def _ended(connection: Any, count: int, held: Held, accepted: bool) -> tuple[Held, bool]:
    """The rest of a call's replies: to MULTI, to each of its `count` commands, to the end."""
    *_, last = without_errors([reply_of(connection) for _ in range(count + 2)])
    if accepted and last is not None:
        list(without_errors(last))
    return held, accepted and last is not None
