"""Headrace: streaming features, online learning and hot-swapped serving. This module lists the whole public API.

Names are imported on first use, so that a program that only reads features never loads torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.client import AsyncClient as AsyncClient
    from headrace.client import Client as Client
    from headrace.client import Engagements as Engagements
    from headrace.errors import HeadraceError as HeadraceError
    from headrace.features import FeatureView as FeatureView
    from headrace.features import OnlineStore as OnlineStore
    from headrace.features import col as col
    from headrace.features.aggregations import *  # noqa: F403
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
    from headrace.pipelines.from_history.train import train as train
    from headrace.pipelines.from_history.training_set import inputs_of as inputs_of
    from headrace.pipelines.from_history.training_set import training_set as training_set
    from headrace.schemas import Event as Event
    from headrace.schemas import Field as Field

_HOMES = {
    "headrace.client": ("AsyncClient", "Client", "Engagements"),
    "headrace.errors": ("HeadraceError",),
    "headrace.schemas": ("Event", "Field"),
    "headrace.features": ("FeatureView", "OnlineStore", "col"),
    "headrace.history.replay": ("replay",),
    "headrace.history.verify": ("verify",),
    "headrace.pipelines.from_history.train": ("train",),
    "headrace.pipelines.from_history.training_set": ("inputs_of", "training_set"),
    "headrace.learners": (
        *("Bag", "Categorical", "DeepFM", "Dense", "Derived", "InputSpec", "Label", "Learner", "Logistic", "Match"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_AGGREGATIONS = "headrace.features.aggregations"
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name from its subpackage (PEP 562); aggregations are those listed by `_AGGREGATIONS`."""
    if name == "__all__":
        return __dir__()
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if not name[:1].isupper():  # names of modules are looked up, too, and must not load the aggregations
        raise AttributeError(f"headrace has no {name!r}; it has {', '.join(sorted(_HOME_OF))} and the aggregations")
    aggregations = importlib.import_module(_AGGREGATIONS)
    if name in aggregations.__all__:
        return getattr(aggregations, name)
    raise AttributeError(f"headrace has no {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, *importlib.import_module(_AGGREGATIONS).__all__])
