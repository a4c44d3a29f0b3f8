"""Lock files: the schema of an event when its data was written, and the changes under which that data stays readable.

`<Event>.avsc` is an Avro schema, committed beside the project's events, with the event's topic, key, time, id, codec
and, if declared, time_unit as attributes. A change is compatible if the new declaration reads all old events and, for
removed fields, if readers that still have the old declaration can read new events. A renamed field with its old name as
an alias is read under both names; readers with the old declaration must be updated before writers. JSON and Arrow
payloads carry field names, and payloads in the Confluent format carry a schema id. Plain Avro datums carry neither: if
their layout changes, the stream needs a new topic, or its old part must be read with
`AvroCodec(spec, writer=<the old lock file>)`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.atomic import write_file
from headrace.errors import EvolutionError
from headrace.schemas.event import Event, EventSpec, spec_of

Verdict = Literal["compatible", "incompatible"]
_ROLES = ("key", "time", "id", "codec", "time_unit")
_LAYOUT_RULES = {"added", "removed", "renamed", "type", "null", "order"}
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between a lock file and a declaration.

    `field` is the path to the field, `rule` one of topic, role, layout, added, removed, renamed, type, null, allowed,
    default, order; `message` says what was found and what to do.
    """

    field: str
    rule: str
    verdict: Verdict
    message: str


def lock_path(event: type[Event], folder: str | Path) -> Path:
    """Path of the event's lock file."""
    return Path(folder) / f"{spec_of(event).name}.avsc"


def write_lock(event: type[Event], folder: str | Path, *, force: bool = False) -> Path:
    """Write the event's lock file, and return its path.

    Args:
        event: the declaration to lock.
        folder: folder of the lock files, beside the project's events.
        force: overwrite even if a change is incompatible; old events of the topic may then be unreadable.

    Raises:
        EvolutionError: the existing lock file differs incompatibly.
    """
    path = lock_path(event, folder)
    if path.exists() and not force:
        refused = [change for change in check_lock(event, folder) if change.verdict == "incompatible"]
        if refused:
            reasons = "; ".join(f"{change.field} ({change.rule}): {change.message}" for change in refused)
            raise EvolutionError(f"event {spec_of(event).name} against {path.name}: {reasons}")
    write_file(path, f"{json.dumps(_locked(spec_of(event)), indent=2)}\n".encode())
    return path


def check_lock(event: type[Event], folder: str | Path) -> list[Change]:
    """All differences between the event and its lock file, in declared order; empty if there are none.

    Raises:
        EvolutionError: the lock file is missing or not valid.
    """
    spec = spec_of(event)
    path = lock_path(event, folder)
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise EvolutionError(
            f"event {spec.name}: no lock file {path.name}; write it with `headrace schemas lock` and commit it"
        ) from exc
    except ValueError as exc:
        raise EvolutionError(f"event {spec.name}: {path.name} is not JSON: {exc}; restore the committed file") from exc
    if not isinstance(old, dict) or not isinstance(old.get("fields"), list):
        raise EvolutionError(f"event {spec.name}: {path.name} is no Avro record; restore the committed file")
    return changes(old, _locked(spec))


def stale_locks(events: Iterable[type[Event]], folder: str | Path) -> list[Path]:
    """Lock files that belong to none of `events`, because their events were removed or renamed."""
    names = {spec_of(event).name for event in events}
    return [path for path in sorted(Path(folder).glob("*.avsc")) if path.stem not in names]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """All differences between two locked schemas."""
    differences = list(_roles(old, new))
    differences += _fields(old, new, "")
    is_plain = old.get("codec") == new["codec"] == "avro" and old.get("topic") == new["topic"]
    if is_plain and any(change.rule in _LAYOUT_RULES for change in differences):
        message = (
            "plain Avro does not tell which declaration wrote it, so old events of the topic would be misread; use a "
            'new topic, or `codec="confluent-avro"` with a registry from a new topic on'
        )
        differences.append(Change("codec", "layout", "incompatible", message))
    return differences


def _locked(spec: EventSpec) -> dict[str, Any]:
    roles = {"topic": spec.topic, "key": list(spec.key), "time": spec.time, "id": spec.id, "codec": spec.codec}
    return {**spec.avro, **roles, **({"time_unit": spec.time_unit} if spec.time_unit else {})}


def _roles(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    if old.get("topic") != new["topic"]:
        message = f"was {old.get('topic')!r}, is {new['topic']!r}: a new stream, old events stay in the old one"
        yield Change("topic", "topic", "compatible", message)
        return
    for role in _ROLES:
        if old.get(role) != new.get(role):
            change = f"was {old.get(role)!r}, is {new.get(role)!r}"
            message = f"{change}, and the topic holds events of both; use a new topic"
            yield Change(role, "role", "incompatible", message)


def _fields(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Change]:
    before = {field["name"]: field for field in old["fields"]}
    after = {field["name"]: field for field in new["fields"]}
    renamed = {alias: name for name, field in after.items() for alias in field.get("aliases", ()) if name not in before}
    for name, field in before.items():
        place = f"{path}{name}"
        if name not in after and name not in renamed:
            yield _removed(place, field)
            continue
        now = after[name if name in after else renamed[name]]
        if name not in after:
            yield _renamed(place, now["name"])
        yield from _types(field["type"], now["type"], place)
        was, default = field.get("default", _ABSENT), now.get("default", _ABSENT)
        if was != default:
            message = f"was {_shown(was)}, is {_shown(default)}; only new reads see it"
            yield Change(place, "default", "compatible", message)
    for name, field in after.items():
        if name not in before and not set(field.get("aliases", ())) & (before.keys() - after.keys()):
            yield _added(f"{path}{name}", field)
    kept = [renamed.get(name, name) for name in before if name in after or name in renamed]
    if kept != [name for name in after if name in kept]:
        message = "another order, which only plain Avro goes by"
        yield Change(path.rstrip(".") or "fields", "order", "compatible", message)


def _renamed(place: str, name: str) -> Change:
    message = f"is {name!r} now, and read under both names; bring readers up to date before writers"
    return Change(place, "renamed", "compatible", message)


def _removed(place: str, field: Mapping[str, Any]) -> Change:
    if "default" in field:
        return Change(place, "removed", "compatible", "readers of the old declaration take its default")
    message = "readers of the old declaration need it; make it `| None` first, and remove (or rename) it later"
    return Change(place, "removed", "incompatible", message)


def _added(place: str, field: Mapping[str, Any]) -> Change:
    if "default" in field:
        return Change(place, "added", "compatible", f"old events read as {_shown(field['default'])}")
    return Change(place, "added", "incompatible", "old events have no value for it; give it a default or `| None`")


def _types(old: Any, new: Any, place: str) -> Iterator[Change]:
    (old_null, old), (new_null, new) = _bare(old), _bare(new)
    if old_null and not new_null:
        yield Change(place, "null", "incompatible", "old events may hold null; keep `| None`")
    elif new_null and not old_null:
        yield Change(place, "null", "compatible", "it may now be null")
    kinds = _kind(old), _kind(new)
    if kinds[0] != kinds[1]:
        if kinds == ("long", "double"):
            yield Change(place, "type", "compatible", "long read as double, exact below 2**53")
        else:
            message = f"was {kinds[0]}, is {kinds[1]}; only long to double is read. Add a field of another name"
            yield Change(place, "type", "incompatible", message)
    elif kinds[0] == "array":
        yield from _types(old["items"], new["items"], f"{place}[]")
    elif kinds[0] == "record":
        yield from _fields(old, new, f"{place}.")
    else:
        yield from _allowed(old, new, place)


def _allowed(old: Any, new: Any, place: str) -> Iterator[Change]:
    was = old.get("allowed") if isinstance(old, dict) else None
    now = new.get("allowed") if isinstance(new, dict) else None
    if was == now:
        return
    if now is None:
        yield Change(place, "allowed", "compatible", "any value is allowed now")
    elif was is None:
        yield Change(place, "allowed", "incompatible", f"old events may hold other values than {now}; keep it open")
    elif gone := [value for value in was if value not in now]:
        yield Change(place, "allowed", "incompatible", f"old events may hold {gone}; keep them in the declaration")
    elif more := [value for value in now if value not in was]:
        yield Change(place, "allowed", "compatible", f"{more} are new")


def _bare(avro: Any) -> tuple[bool, Any]:
    """Whether a type may be null, and the type without null."""
    if not isinstance(avro, list):
        return False, avro
    return "null" in avro, next(branch for branch in avro if branch != "null")


def _kind(avro: Any) -> str:
    if not isinstance(avro, dict):
        return str(avro)
    return str(avro.get("logicalType", avro["type"]))


def _shown(default: object) -> str:
    return "no default" if default is _ABSENT else repr(default)
