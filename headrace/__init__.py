"""Headrace: streaming features, online learning and hot-swapped serving. This list is everything a user may touch.

Names are imported when they are first used, so that a program that only reads features never loads torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.errors import HeadraceError as HeadraceError
    from headrace.features import Count as Count
    from headrace.features import CountBy as CountBy
    from headrace.features import DecayedCount as DecayedCount
    from headrace.features import DecayedSum as DecayedSum
    from headrace.features import Distinct as Distinct
    from headrace.features import FeatureView as FeatureView
    from headrace.features import First as First
    from headrace.features import Last as Last
    from headrace.features import LastN as LastN
    from headrace.features import Max as Max
    from headrace.features import Mean as Mean
    from headrace.features import Min as Min
    from headrace.features import OnlineStore as OnlineStore
    from headrace.features import Quantile as Quantile
    from headrace.features import Ratio as Ratio
    from headrace.features import Sequence as Sequence
    from headrace.features import Std as Std
    from headrace.features import Sum as Sum
    from headrace.features import TimeSince as TimeSince
    from headrace.features import TopK as TopK
    from headrace.features import Var as Var
    from headrace.features import VectorMean as VectorMean
    from headrace.features import col as col
    from headrace.history.replay import replay as replay
    from headrace.history.verify import verify as verify
    from headrace.learners import Bag as Bag
    from headrace.learners import Categorical as Categorical
    from headrace.learners import DeepFM as DeepFM
    from headrace.learners import Dense as Dense
    from headrace.learners import Derived as Derived
    from headrace.learners import InputSpec as InputSpec
    from headrace.learners import Label as Label
    from headrace.learners import Learner as Learner
    from headrace.learners import Logistic as Logistic
    from headrace.learners import Match as Match
    from headrace.schemas import Event as Event
    from headrace.schemas import Field as Field

_HOMES = {
    "headrace.errors": ("HeadraceError",),
    "headrace.schemas": ("Event", "Field"),
    "headrace.features": (
        *("Count", "CountBy", "DecayedCount", "DecayedSum", "Distinct", "FeatureView", "First", "Last", "LastN", "Max"),
        *("Mean", "Min", "OnlineStore", "Quantile", "Ratio", "Sequence", "Std", "Sum", "TimeSince", "TopK", "Var"),
        *("VectorMean", "col"),
    ),
    "headrace.history.replay": ("replay",),
    "headrace.history.verify": ("verify",),
    "headrace.learners": (
        *("Bag", "Categorical", "DeepFM", "Dense", "Derived", "InputSpec", "Label", "Learner", "Logistic", "Match"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - one list, not two
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name from its room (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"headrace has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
