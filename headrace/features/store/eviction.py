"""Whether Redis may drop records by itself: an entity whose record is evicted begins at 0 again, and nobody is told.

    maxmemory-policy     noeviction        volatile-...                          allkeys-...
    may drop             nothing           keys with a ttl: views with ttl=      any key

A store is only written where the policy is noeviction, unless its owner allows another. It is the policy that counts,
not whether it would drop something now: a maxmemory, or a ttl= of a view, is often set later and by someone else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_EVICTION = "noeviction"

ADVICE = "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in the configuration file)"
ALLOW = "HEADRACE_ALLOW_EVICTION=true, or OnlineStore.open(..., allow_eviction=True)"


@dataclass(frozen=True, slots=True)
class Eviction:
    """What one Redis node does when its memory is full. `maxmemory_bytes` 0: it has no limit now."""

    policy: str
    maxmemory_bytes: int

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> "Eviction | None":
        """From the answer to INFO memory; None where a managed Redis does not tell."""
        policy = info.get("maxmemory_policy")
        return None if policy is None else cls(str(policy), int(info.get("maxmemory", 1)))

    @property
    def may_drop(self) -> bool:
        """Whether records may go before their time."""
        return self.policy != NO_EVICTION

    def __str__(self) -> str:
        limit = f"{self.maxmemory_bytes:,} bytes" if self.maxmemory_bytes else "not set"
        return f"maxmemory-policy {self.policy}, maxmemory {limit}"
