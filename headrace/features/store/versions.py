"""The active version of each view, the class that owns its name, and the versions that a store holds.

    <ns>:views       view name -> active fingerprint
    <ns>:activated   view name:version -> 1, for each version that was active once and has not been dropped
    <ns>:owners      view name -> module:Class that first wrote under it

A changed view is built beside the active version. A replaced version stays until it is dropped, and a reader built for
it, such as a model server, may keep using it (`require_readable`). A changed class remains the owner of the view's
name. Another class of the same name is rejected, so that it cannot replace the owner's records, unless its records are
equal to the byte: it is then the same view under a new address, and becomes the owner. A class that was both moved and
changed takes over the name with `headrace features adopt`.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import structlog

from headrace.errors import LayoutError, StoreError
from headrace.features.store.fences import foreign
from headrace.features.store.link import KEYS_MAX, RedisLink
from headrace.features.view import ViewPlan, version_of

ACTIVE_S_MAX = 1.0
"""Seconds for which a reader caches the active version of a view."""

_SCRIPT = "__main__"
"""Module of a class whose file is run as a script, whatever its name when it is imported."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a view in a store.

    `is_active`: readers get it. `is_declared`: it is the version of the current class. `records`: number of entities.
    """

    version: str
    is_active: bool
    is_declared: bool
    records: int


class ViewVersions:
    """Versions and owners of the views of one namespace. Thread-safe. Every method may raise StoreUnavailableError."""

    def __init__(self, link: RedisLink, namespace: str) -> None:
        self._link = link
        self._namespace = namespace
        self._known: dict[str, tuple[str | None, float]] = {}
        self._superseded: dict[str, float] = {}

    def active(self, view_name: str, deadline_s: float | None = None) -> str | None:
        """Fingerprint of the version that readers of the view get; None before anything was materialized.

        `deadline_s`: time of `time.monotonic` by which Redis must have answered.
        """
        fingerprint = self._field("views", view_name, "reading the active version of", deadline_s)
        self._known[view_name] = (fingerprint, time.monotonic())
        return fingerprint

    def activate(self, plan: ViewPlan) -> None:
        """Make this version the one that readers of the view get.

        Raises:
            LayoutError: another class owns the view's name.
        """
        self._claim(plan)
        replaced = self.active(plan.name)
        with self._link.errors(f"activating {plan.name}"):
            for version in filter(None, (replaced, plan.fingerprint)):  # stores of earlier releases lack the first
                self._link.client.hset(f"{self._namespace}:activated", _label(plan.name, version), 1)
            self._link.client.hset(f"{self._namespace}:views", plan.name, plan.fingerprint)
        log.info("view_activated", view=plan.name, fingerprint=plan.fingerprint)
        self.active(plan.name)

    def register(self, plan: ViewPlan) -> bool:
        """Activate the view's version if none is active; returns whether it is now the active one.

        Raises:
            LayoutError: another class owns the view's name.
        """
        self._claim(plan)
        with self._link.errors(f"registering {plan.name}"):
            self._link.client.hsetnx(f"{self._namespace}:views", plan.name, plan.fingerprint)
        is_active = self.active(plan.name) == plan.fingerprint
        if is_active:
            with self._link.errors(f"registering {plan.name}"):
                self._link.client.hset(f"{self._namespace}:activated", _label(plan.name, plan.fingerprint), 1)
        return is_active

    def require_active(self, plan: ViewPlan, deadline_s: float | None = None) -> None:
        """Check that this version of the view is active, or none is yet; asks Redis once in `ACTIVE_S_MAX` seconds.

        `deadline_s`: time of `time.monotonic` by which Redis must have answered.

        Raises:
            LayoutError: another version is active.
        """
        fingerprint = self._active_lately(plan, deadline_s)
        if fingerprint not in {None, plan.fingerprint}:
            self._require_owner(plan)
            raise LayoutError(
                f"view {plan.name}: readers get version {fingerprint}, this declaration is {plan.fingerprint}: the "
                "view was changed and its new version is not active; run `headrace backfill` to build it from the log "
                f"and activate it: headrace backfill {plan.declared_in} --events kafka://HOST:PORT, or an archive"
            )

    def require_readable(self, plan: ViewPlan, deadline_s: float | None = None) -> bool:
        """Check that this version of the view is or once was active; returns whether another version has replaced it.

        Records of a replaced version are kept unchanged until it is dropped. `deadline_s` is as in `require_active`.

        Raises:
            LayoutError: another version is active, and this one never was or has been dropped.
        """
        fingerprint = self._active_lately(plan, deadline_s)
        if fingerprint in {None, plan.fingerprint}:
            self._superseded.pop(plan.name, None)
            return False
        asked_s = self._superseded.get(plan.name)
        if asked_s is None or time.monotonic() - asked_s > ACTIVE_S_MAX:
            label = _label(plan.name, plan.fingerprint)
            if self._field("activated", label, "reading the replaced versions of", deadline_s) is None:
                self._superseded.pop(plan.name, None)
                self.require_active(plan, deadline_s)
                return False
            if asked_s is None:
                log.warning("view_superseded", view=plan.name, version=plan.fingerprint, active=fingerprint)
            self._superseded[plan.name] = time.monotonic()
        return True

    def _active_lately(self, plan: ViewPlan, deadline_s: float | None) -> str | None:
        """`active`, cached for `ACTIVE_S_MAX` seconds."""
        fingerprint, asked_s = self._known.get(plan.name, (None, -math.inf))
        if time.monotonic() - asked_s > ACTIVE_S_MAX:
            fingerprint = self.active(plan.name, deadline_s)
        return fingerprint

    def adopt(self, plan: ViewPlan) -> str | None:
        """Make the view's class the owner of its name; returns the previous owner, None if there was none."""
        owner = self._owner(plan.name)
        self._set_owner(plan)
        log.info("view_adopted", view=plan.name, owner=plan.declared_in, before=owner)
        return owner

    def list(self, plan: ViewPlan) -> list[Version]:
        """All versions of the view, the active one first. Scans all keys of the Redis."""
        view = re.escape(plan.name)
        form = re.compile(rf"{re.escape(self._namespace)}:\{{\d+\}}:{view}:([0-9a-f]+)([:!])".encode())
        records: Counter[str] = Counter()
        for match in filter(
            None, map(form.match, self._scan(f"{plan.name}:*", f"listing the versions of {plan.name}"))
        ):
            records[match[1].decode()] += match[2] == b":"
        active = self.active(plan.name)
        known = [
            Version(version, active is not None and version == version_of(active), version == plan.version, count)
            for version, count in records.items()
        ]
        return sorted(known, key=lambda one: (not one.is_active, not one.is_declared, one.version))

    def drop(self, plan: ViewPlan, version: str) -> int:
        """Delete the records and fences of a version; returns the number of keys. Call again after an error.

        Raises:
            StoreError: the version is active, or the store does not hold it.
        """
        name, known = plan.name, self.list(plan)
        chosen = next((one for one in known if one.version == version_of(version)), None)
        if chosen is None:
            names = ", ".join(one.version for one in known) or "none at all"
            raise StoreError(f"view {name}: {self._link.shown_url} holds no version {version!r}; it holds {names}")
        if chosen.is_active:
            raise StoreError(
                f"view {name}: version {chosen.version} is active, readers get it; backfill another one first, which "
                "activates that"
            )
        return self.delete(name, chosen.version)

    def delete(self, view_name: str, fingerprint: str) -> int:
        """Delete the keys of a version, if any; returns how many existed. Call again after an error.

        Raises:
            StoreError: the version is active.
        """
        if self.active(view_name) == fingerprint:
            raise StoreError(f"view {view_name} · version {fingerprint} is active; activate another one first")
        with self._link.errors(f"dropping {view_name}"):
            self._link.client.hdel(f"{self._namespace}:activated", _label(view_name, fingerprint))
        pattern, dropped = f"{view_name}:{version_of(fingerprint)}[:!]*", 0
        keys = self._scan(pattern, f"scanning {view_name}")
        while part := list(islice(keys, KEYS_MAX)):
            dropped += self._link.unlink(part)
        return dropped

    def scan_records(self, plan: ViewPlan) -> Iterator[bytes]:
        """Keys of all records of the view's version, in arbitrary order; a key may occur twice."""
        return self._scan(f"{plan.name}:{plan.version}:*", f"scanning {plan.name}")

    def _scan(self, pattern: str, doing: str) -> Iterator[bytes]:
        with self._link.errors(doing):
            yield from self._link.client.scan_iter(match=f"{self._namespace}:{{*}}:{pattern}".encode(), count=1_000)

    def _claim(self, plan: ViewPlan) -> None:
        """Make the view's class the owner of its name if it may be.

        Raises:
            LayoutError: another class owns the name, and its records differ.
        """
        active = self.active(plan.name)
        with self._link.errors(f"claiming {plan.name}"):
            self._link.client.hsetnx(f"{self._namespace}:owners", plan.name, plan.declared_in)
        owner = self._owner(plan.name) if active == plan.fingerprint else self._require_owner(plan)
        if owner != plan.declared_in and not plan.declared_in.startswith(_SCRIPT):
            self._set_owner(plan)

    def _require_owner(self, plan: ViewPlan) -> str | None:
        """The owner of the view's name: the view's own class, or None.

        Raises:
            LayoutError: another class owns the name.
        """
        owner = self._owner(plan.name)
        if owner is None or _is_same_class(owner, plan.declared_in):
            return owner
        raise LayoutError(
            f"view {plan.name}: {self._link.shown_url} has records of {owner} under this name, and {plan.declared_in} "
            'is another view, which would replace them. Give one of the two another name="..." in its class '
            f"arguments; or, if the class was moved or renamed, run `headrace features adopt {plan.declared_in}`"
        )

    def _owner(self, view_name: str) -> str | None:
        return self._field("owners", view_name, "reading the owner of")

    def _set_owner(self, plan: ViewPlan) -> None:
        with self._link.errors(f"adopting {plan.name}"):
            self._link.client.hset(f"{self._namespace}:owners", plan.name, plan.declared_in)

    def _field(self, name: str, view_name: str, doing: str, deadline_s: float | None = None) -> str | None:
        value = self._link.field(f"{self._namespace}:{name}", view_name, f"{doing} {view_name}", deadline_s)
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError as exc:
            raise StoreError(foreign(f"store {self._link.shown_url}, {self._namespace}:{name}", exc)) from exc


def _label(view_name: str, fingerprint: str) -> str:
    """Field of a version in the hash of versions that were active once."""
    return f"{view_name}:{version_of(fingerprint)}"


def _is_same_class(owner: str, declared_in: str) -> bool:
    """Whether two addresses may be those of one class; the module of a script matches any module."""
    (module, _, name), (other_module, _, other_name) = owner.partition(":"), declared_in.partition(":")
    return name == other_name and (module == other_module or _SCRIPT in (module, other_module))
