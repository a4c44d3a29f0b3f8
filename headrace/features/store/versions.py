"""Versions of a view in a store: a changed view is built beside the old one, which stays until somebody drops it."""

import re
from collections import Counter
from dataclasses import dataclass

from headrace.errors import StoreError
from headrace.features.store.store import OnlineStore
from headrace.features.view import FeatureView, plan_of, version_of


@dataclass(frozen=True, slots=True)
class Version:
    """One version that a store holds.

    `is_active`: readers get it. `is_declared`: it is that of the class as it is now. `records`: its entities.
    """

    version: str
    is_active: bool
    is_declared: bool
    records: int


def versions(view: type[FeatureView], store: OnlineStore) -> list[Version]:
    """All versions of a view in the store, the active one first. Walks over every key of the Redis.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    plan = plan_of(view)
    prefix = f"{store.namespace}:{{*}}:{plan.name}:"
    form = re.compile(rf"{re.escape(store.namespace)}:\{{\d+\}}:{re.escape(plan.name)}:([0-9a-f]+)([:!])".encode())
    records: Counter[str] = Counter()
    with store._link.errors(f"listing the versions of {plan.name}"):  # noqa: SLF001
        for key in store._link.client.scan_iter(match=f"{prefix}*", count=1_000):  # noqa: SLF001
            if found := form.match(key):
                records[found[1].decode()] += found[2] == b":"
    active = store.active(plan.name)
    known = [
        Version(version, active is not None and version == version_of(active), version == plan.version, count)
        for version, count in records.items()
    ]
    return sorted(known, key=lambda one: (not one.is_active, not one.is_declared, one.version))


def drop(view: type[FeatureView], version: str, store: OnlineStore) -> int:
    """Delete a version of a view, records and offsets; returns the number of keys.

    Raises:
        StoreError: readers get it, or the store has none such.
        StoreUnavailableError: Redis does not answer; call again.
    """
    name, known = plan_of(view).name, versions(view, store)
    found = next((one for one in known if one.version == version_of(version)), None)
    if found is None:
        held = ", ".join(one.version for one in known) or "none at all"
        raise StoreError(f"view {name}: {store.url} holds no version {version!r}; it holds {held}")
    if found.is_active:
        raise StoreError(
            f"view {name}: version {found.version} is active, readers get it; backfill another one first, which "
            "activates that"
        )
    return store.drop(name, found.version)
