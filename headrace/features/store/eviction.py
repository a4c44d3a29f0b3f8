"""Check whether Redis may evict records: the entity of an evicted record would silently restart from zero.

    maxmemory-policy     noeviction        volatile-...                          allkeys-...
    may drop             nothing           keys with a ttl: views with ttl=      any key

A store is only written if the policy is noeviction, unless eviction is allowed explicitly. Only the policy counts, not
whether Redis would evict anything now: a maxmemory, or a view's ttl=, is often set later and by someone else.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from headrace.errors import EvictionError, StoreError, StoreUnavailableError
from headrace.features.store.link import RedisLink

EVICTION_S = 5.0
"""Seconds between checks whether Redis may evict records, while records are written."""
NO_EVICTION = "noeviction"
ADVICE = "set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in the configuration file)"
ALLOW = "HEADRACE_ALLOW_EVICTION=true, or OnlineStore.open(..., allow_eviction=True)"

log = structlog.get_logger(__name__)


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


class EvictionCheck:
    """Checks the policies of a Redis at most every `EVICTION_S` seconds. `is_allowed`: records may be evicted."""

    def __init__(self, link: RedisLink, *, is_allowed: bool) -> None:
        self._link = link
        self._is_allowed = is_allowed
        self._by_node: dict[str, Eviction] = {}
        self._looked_s = -math.inf

    def require_kept(self, view_name: str) -> None:
        """Check that Redis keeps the records of a view; see `OnlineStore.require_kept`.

        Raises:
            EvictionError: a policy may drop records, which is not allowed.
            StoreUnavailableError: Redis does not answer.
        """
        if time.monotonic() - self._looked_s > EVICTION_S:
            self._look()
        if self._is_allowed:
            return
        for node, eviction in self._by_node.items():
            if eviction.may_drop:
                self._looked_s = -math.inf  # the next call asks again
                raise EvictionError(
                    f"view {view_name}: Redis at {node} has {eviction}, so it may drop records to make room, and their "
                    f"entities begin at 0 again; {ADVICE}, or allow it: {ALLOW}. What was dropped before is found by "
                    "`headrace verify` and comes back by a backfill"
                )

    def _look(self) -> None:
        is_first, url = self._looked_s == -math.inf, self._link.shown_url
        by_node: dict[str, Eviction | None]
        try:
            by_node = {node: Eviction.of_info(info) for node, info in self._link.info("memory").items()}
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            log.debug("eviction_not_told", detail=str(exc))
            by_node = {url: None}
        self._looked_s = time.monotonic()
        self._by_node = {node: eviction for node, eviction in by_node.items() if eviction is not None}
        if is_first and None in by_node.values():
            log.warning("eviction_unknown", store=url, advice="grant the user +info, or make sure of noeviction")
        if is_first and self._is_allowed and any(each.may_drop for each in self._by_node.values()):
            log.warning("eviction_allowed", store=url, policies={str(each) for each in self._by_node.values()})
