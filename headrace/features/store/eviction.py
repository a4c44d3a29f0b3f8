"""Check whether Redis may evict records: the entity of an evicted record would silently restart from zero.

    maxmemory-policy     noeviction        volatile-...                          allkeys-...
    may drop             nothing           keys with a ttl: views with ttl=      any key

A store is only written if the policy is noeviction, unless eviction is allowed explicitly. Only the policy counts, not
whether Redis would evict anything now: a maxmemory, or a view's ttl=, is often set later and by someone else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_EVICTION = "noeviction"

ADVICE = "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in the configuration file)"
ALLOW = "HEADRACE_ALLOW_EVICTION=true, or OnlineStore.open(..., allow_eviction=True)"


@dataclass(frozen=True, slots=True)
class Eviction:
    """Eviction settings of one Redis node. `maxmemory_bytes` is 0 if no limit is set."""

    policy: str
    maxmemory_bytes: int

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> "Eviction | None":
        """Parse the reply to INFO memory; None if a managed Redis hides the setting."""
        policy = info.get("maxmemory_policy")
        return None if policy is None else cls(str(policy), int(info.get("maxmemory", 1)))

    @property
    def may_drop(self) -> bool:
        """Whether records may be evicted before their ttl."""
        return self.policy != NO_EVICTION

    def __str__(self) -> str:
        limit = f"{self.maxmemory_bytes:,} bytes" if self.maxmemory_bytes else "not set"
        return f"maxmemory-policy {self.policy}, maxmemory {limit}"
