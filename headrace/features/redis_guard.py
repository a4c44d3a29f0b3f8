"""Transactions that are carried out only if a hash holds what is expected: WATCH, MULTI, and EXEC after a look.

EXEC is not sent before the guard's answer is here, so no command is ever carried out against it; and a guard that
changes after the answer makes EXEC do nothing. The commands are on their way meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import hiredis
import redis.exceptions as theirs

_EXEC, _DISCARD = (hiredis.pack_command((name,)) for name in ("EXEC", "DISCARD"))


@dataclass(frozen=True, slots=True)
class Guarded:
    """Commands that are carried out together if `accepts` what `fields` of the hash `guard` hold then."""

    guard: bytes
    fields: tuple[str, ...]
    accepts: Callable[[list[bytes | None]], bool]
    commands: Sequence[tuple[Any, ...]]


def carry_out(pool: Any, calls: Iterable[Guarded], made: list[Guarded]) -> list[tuple[list[bytes | None], bool]]:
    """What the guard of each call held, and whether its commands were carried out; over one connection of a pool.

    What is drawn from `calls` is noted in `made`. Raises redis-py's errors.

    sent       guard 1, commands 1      EXEC 1, guard 2, commands 2      EXEC 2
    answered           guard 1                  commands 1, EXEC 1, guard 2       ...
    """
    connection = pool.get_connection()
    done: list[tuple[list[bytes | None], bool]] = []
    asked: Guarded | None = None
    before: tuple[Guarded, list[bytes | None], bool] | None = None
    try:
        for call in chain(calls, (None,)):
            body = [] if call is None else _packed(call)
            if call is not None:
                made.append(call)
            if asked is not None:
                if before is not None:
                    done.append(_ended(connection, *before))
                held = _guard_of(connection)
                before = (asked, held, asked.accepts(held))
                body.insert(0, _EXEC if before[2] else _DISCARD)
            if body:
                connection.send_packed_command(body)
            asked = call
        if before is not None:
            done.append(_ended(connection, *before))
    except BaseException:
        connection.disconnect()  # replies may be under way that nobody will read, and keys watched
        raise
    finally:
        pool.release(connection)
    return done


def _packed(call: Guarded) -> list[bytes]:
    """The guard's question and the commands, all but the end."""
    guard = [("WATCH", call.guard), ("HMGET", call.guard, *call.fields), ("MULTI",)]
    return [hiredis.pack_command(command) for command in (*guard, *call.commands)]


def _guard_of(connection: Any) -> list[bytes | None]:
    """What the guard's fields hold."""
    _, held = without_errors([reply_of(connection), reply_of(connection)])
    return list(held)


def _ended(connection: Any, call: Guarded, held: list[bytes | None], accepted: bool) -> tuple[list[bytes | None], bool]:
    """The rest of a call's replies: to MULTI, to each command, to the end."""
    *_, last = without_errors([reply_of(connection) for _ in range(len(call.commands) + 2)])
    if accepted and last is not None:
        list(without_errors(last))
    return held, accepted and last is not None


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
