"""Estimate of the share of positives that arrive after the first age, from requests of every age.

    age      a0        a1              a2                    within
    rate     r0   |    r1      |       r2        |   ..          positives per candidate up to, or between, ages

    late share = (r1 + r2 + ..) / (r0 + r1 + r2 + ..)

Each rate is estimated from the requests that reached its age last. So a share is known before any request has waited
its whole window, and it follows a change within `MEMORY` candidates. State is a handful of numbers.

Source: the actuarial (life table) estimator of a distribution from censored observations, with exponential forgetting.
"""

from typing import Any

PRIOR = 20.0
"""Weight of the prior, in positives, half of them late."""
MEMORY = 2_000_000.0
"""Number of candidates after which the weight of an observation has fallen to 1 / e."""


class Delays:
    """Rates of positives per candidate, by age; `ages` is the number of ages, at least 2."""

    def __init__(self, ages: int) -> None:
        self._positives = [0.0] * ages
        self._candidates = [0.0] * ages

    def observe(self, age: int, positives: int, candidates: int) -> None:
        """Count requests that reached age number `age`, and their positives since the previous age."""
        kept = max(0.0, 1.0 - candidates / MEMORY)
        self._positives[age] = self._positives[age] * kept + positives
        self._candidates[age] = self._candidates[age] * kept + candidates

    def late_share(self) -> float:
        """Estimate the share of positives that arrive after the first age, in [0, 1).

        Ages that no request has reached count as the mean of the earlier ages.
        """
        rates = [p / c for p, c in zip(self._positives, self._candidates, strict=True) if c]
        if not rates:
            return 0.5
        late = sum(rates[1:]) + (len(self._positives) - len(rates)) * (sum(rates) / len(rates))
        weight = self._positives[0] + sum(self._positives[1:])
        total = rates[0] + late
        share = late / total if total else 0.5
        return float((share * weight + 0.5 * PRIOR) / (weight + PRIOR))

    def facts(self) -> dict[str, Any]:
        """A copy of the state for JSON; a thread writes it while more requests are observed."""
        return {"positives": list(self._positives), "candidates": list(self._candidates)}

    def load(self, facts: dict[str, Any]) -> None:
        """Load what `facts` returned."""
        self._positives, self._candidates = list(facts["positives"]), list(facts["candidates"])
