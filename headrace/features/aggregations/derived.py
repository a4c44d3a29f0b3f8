"""Ratio: computed from two other features at read time, without state."""

import difflib
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregations.aggregation import Combination, Combined, aggregation
from headrace.features.answer import Feature
from headrace.features.state.layout import Known


@aggregation
class Ratio(Combination):
    """`part / whole` of two features of the view, for every window that both have.

    With `prior=(alpha, beta)` it is the posterior mean of a Beta(alpha, beta) prior after `part` successes in `whole`
    trials, (part + alpha) / (whole + alpha + beta), which stays near alpha / (alpha + beta) while there are few events.
    Without a prior it is null where `whole` is 0.

    >>> from headrace import Count, col
    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(
    ...     on=Count(where=col("state") == "on", windows="1h"),
    ...     all=Count(windows="1h"),
    ...     share=Ratio("on", "all", prior=(1, 1)),
    ... )
    {'on_1h': 2, 'all_1h': 3, 'share_1h': 0.6}
    """

    part: str
    whole: str
    prior: tuple[float, float] = (0.0, 0.0)

    def problem(self) -> str | None:
        """Report a prior that is negative or not finite."""
        if all(0 <= weight < math.inf for weight in self.prior):
            return None
        return f"prior={self.prior}; both must be 0 or more, and finite"

    def combine(self, path: str, features: Mapping[str, Sequence[Feature]]) -> Sequence[Combined]:
        """One feature per common window.

        Raises:
            DeclarationError: a feature does not exist or is not a number, or there is no common window.
        """
        parts, wholes = _numbers(path, features, self.part), _numbers(path, features, self.whole)
        common = [window for window in parts if window in wholes]
        if not common:
            raise DeclarationError(
                f"{path}: {self.part!r} has windows {_listed(parts)} and {self.whole!r} has {_listed(wholes)}; "
                "give both a common one",
            )
        alpha, beta = map(float, self.prior)
        pairs = [(window, parts[window].name, wholes[window].name) for window in common]
        return [
            Combined("float", window, partial(_ratio, part, whole, alpha, beta), (part, whole))
            for window, part, whole in pairs
        ]


def _numbers(path: str, features: Mapping[str, Sequence[Feature]], name: str) -> dict[str | None, Feature]:
    """Features of attribute `name`, by window."""
    if name not in features:
        near = difflib.get_close_matches(name, features, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DeclarationError(f"{path}: no feature {name!r}; {hint}there are {', '.join(sorted(features))}")
    if any(feature.dtype not in {"int", "float"} for feature in features[name]):
        raise DeclarationError(f"{path}: {name!r} is {features[name][0].dtype}; Ratio needs numbers")
    return {feature.window: feature for feature in features[name]}


def _ratio(part: str, whole: str, alpha: float, beta: float, known: Known) -> NDArray[np.float64]:
    numerator = np.asarray(known.columns[part], np.float64) + alpha
    denominator = np.asarray(known.columns[whole], np.float64) + (alpha + beta)
    out = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def _listed(windows: Mapping[str | None, Feature]) -> str:
    return ", ".join(str(window) for window in windows)
