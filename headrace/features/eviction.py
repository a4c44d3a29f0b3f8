"""Whether Redis may drop records by itself: an entity whose record is evicted begins at 0 again, and nobody is told.

    maxmemory-policy     noeviction        volatile-...                      allkeys-...
    with a maxmemory     nothing is lost   records of views with a ttl are   every record is
    maxmemory 0          nothing is lost, whatever the policy

So a store is only written where nothing of the view can be evicted, unless its owner allows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_EVICTION = "noeviction"
_ONLY_WITH_TTL = "volatile-"

ADVICE = "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in the configuration file)"
ALLOW = "HEADRACE_ALLOW_EVICTION=true, or OnlineStore.open(..., allow_eviction=True)"


@dataclass(frozen=True, slots=True)
class Eviction:
    """What one Redis node does when its memory is full. `maxmemory_bytes` 0: it has no limit."""

    policy: str
    maxmemory_bytes: int

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> "Eviction | None":
        """From the answer to INFO memory; None where a managed Redis does not tell."""
        policy = info.get("maxmemory_policy")
        return None if policy is None else cls(str(policy), int(info.get("maxmemory", 1)))

    def may_drop(self, *, has_ttl: bool) -> bool:
        """Whether keys, with or without a time to live, may go before their time."""
        if self.policy == NO_EVICTION or not self.maxmemory_bytes:
            return False
        return has_ttl or not self.policy.startswith(_ONLY_WITH_TTL)

    def __str__(self) -> str:
        return f"maxmemory-policy {self.policy}, maxmemory {self.maxmemory_bytes:,} bytes"
