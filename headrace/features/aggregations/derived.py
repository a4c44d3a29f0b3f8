"""Features made of others when read: nothing of them is stored."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.answer import Feature
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.state.layout import Derived, Known


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """`part / whole` of two features of the view, for every window that both have.

    With `prior=(alpha, beta)` it is the mean of a Beta(alpha, beta) prior after `part` successes in `whole` trials,
    (part + alpha) / (whole + alpha + beta): few events stay near alpha / (alpha + beta). Without one it is none where
    `whole` is 0.
    """

    part: str
    whole: str
    prior: tuple[float, float] = (0.0, 0.0)

    def bind(self, binder: Binder) -> Sequence[Derived]:
        """One feature a common window.

        Raises:
            DeclarationError: a feature that the view lacks or that is no number, no common window, a negative prior.
        """
        alpha, beta = self.prior
        if not (0 <= alpha < math.inf and 0 <= beta < math.inf):
            raise DeclarationError(f"{binder.path}: prior={self.prior}; both must be 0 or more, and finite")
        parts, wholes = self._numbers(binder, self.part), self._numbers(binder, self.whole)
        common = [window for window in parts if window in wholes]
        if not common:
            raise DeclarationError(
                f"{binder.path}: {self.part!r} has windows {_listed(parts)} and {self.whole!r} has {_listed(wholes)}; "
                "give both a common one",
            )
        return [
            Derived(
                binder.feature("float", window),
                partial(_ratio, parts[window].name, wholes[window].name, float(alpha), float(beta)),
            )
            for window in common
        ]

    def _numbers(self, binder: Binder, name: str) -> dict[str | None, Feature]:
        """Features of attribute `name` by window."""
        features = [feature for feature in binder.builder.features if feature.declared == name]
        if not features:
            known = sorted({feature.declared for feature in binder.builder.features})
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DeclarationError(f"{binder.path}: no feature {name!r}; {hint}there are {', '.join(known)}")
        if any(feature.dtype not in {"int", "float"} for feature in features):
            raise DeclarationError(f"{binder.path}: {name!r} is {features[0].dtype}; Ratio needs numbers")
        return {feature.window: feature for feature in features}


def _ratio(part: str, whole: str, alpha: float, beta: float, known: Known) -> NDArray[np.float64]:
    numerator = np.asarray(known.columns[part], np.float64) + alpha
    denominator = np.asarray(known.columns[whole], np.float64) + (alpha + beta)
    out = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def _listed(windows: Mapping[str | None, Feature]) -> str:
    return ", ".join(str(window) for window in windows)
