"""The declaration of a learner: views, label, inputs and model.

    class NextThing(Learner):
        views = (ReaderActivity, ThingActivity)
        label = Label(Reading, within="10m", candidate="thing")
        inputs = InputSpec(Categorical("thing"), Dense("reads", "thing_activity.reads_1h", transform="log1p"))
        model = DeepFM(dim=16, hidden=(64, 32))

A declaration is checked when the class is defined, without a store or a broker.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from headrace.errors import DeclarationError, SchemaError
from headrace.features import FeatureView, ViewPlan, plans_of
from headrace.learners.columns import check_fields
from headrace.learners.input_spec import InputSpec
from headrace.learners.inputs import Inputs
from headrace.learners.labels.label import Label
from headrace.learners.labels.policy import LabelPolicy, Wait, ages_us
from headrace.learners.models.checks import check_model
from headrace.learners.models.model import Model
from headrace.learners.tables.table import TablePolicy


class Learner:
    """Base class of learner declarations. A declaration is a class; it is not instantiated.

    Attributes:
        views: views whose features `inputs` reads; a tuple, or a single view.
        label: which events make an example positive, or a dict of several labels by name, in the order of the model's
            labels; None if the stream itself has labels.
        policy: when to learn from a request although its labels arrive late. `Wait()` is required with several labels,
            or with one numeric label.
        inputs: the fields of the model.
        model: the model's declaration.
        tables: embedding table -> policy; other tables have the default policy.
        name: of the learner; the class name in snake_case unless given.

    Raises:
        DeclarationError: inputs or model are missing, a column names no feature of the views or one of a type that its
            field cannot read, a policy names no table, or an attribute has the wrong type.
    """

    views: ClassVar[tuple[type[FeatureView], ...]] = ()
    label: ClassVar[Label | Mapping[str, Label] | None] = None
    policy: ClassVar[LabelPolicy] = Wait()
    inputs: ClassVar[InputSpec]
    model: ClassVar[Model]
    tables: ClassVar[Mapping[str, TablePolicy]] = {}
    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        cls._check_parts()
        if unknown := set(cls.tables) - set(cls.inputs.tables):
            raise DeclarationError(
                f"learner {cls.name} · tables {sorted(unknown)}: inputs use {', '.join(cls.inputs.tables)}"
            )
        check_fields(cls.name, cls.inputs, cls._plans())

    @classmethod
    def _check_parts(cls) -> None:
        """Raise if an attribute is missing or has the wrong type; a single view becomes a tuple."""
        for attribute in ("inputs", "model"):
            if not hasattr(cls, attribute):
                raise DeclarationError(f"learner {cls.name}: no {attribute}; declare `{attribute} = ...`")
        if isinstance(cls.views, type):
            cls.views = (cls.views,)
        kinds = {
            "views": (cls.views, isinstance(cls.views, tuple | list), "a tuple of views, such as (UserActivity,)"),
            "label": (cls.label, _is_label(cls.label), 'a Label(...), or several as {"click": Label(...)}'),
            "policy": (cls.policy, isinstance(cls.policy, LabelPolicy), 'Wait(), Correct("1m") or Importance("1m")'),
            "inputs": (cls.inputs, isinstance(cls.inputs, InputSpec), "an InputSpec(...)"),
            "model": (cls.model, isinstance(cls.model, Model), "a model, such as DeepFM()"),
            "tables": (cls.tables, isinstance(cls.tables, Mapping), 'a dict, such as {"item": TablePolicy()}'),
        }
        for name, (value, is_valid, expected) in kinds.items():
            if not is_valid:
                given = f"the class {value.__name__}; call it" if isinstance(value, type) else repr(value)
                raise DeclarationError(f"learner {cls.name}: {name} is {given}; write {expected}")
        for table, policy in cls.tables.items():
            if not isinstance(policy, TablePolicy):
                raise DeclarationError(f"learner {cls.name} · table {table!r}: {policy!r}; write a TablePolicy(...)")

        check_model(f"learner {cls.name}", cls.model)
        cls._check_labels()

    @classmethod
    def _check_labels(cls) -> None:
        """Raise if the labels do not fit the model or the policy."""
        labels = cls.labels()
        if labels and cls.model.labels != len(labels):
            raise DeclarationError(
                f"learner {cls.name}: {len(labels)} labels, {', '.join(labels) or 'one'}, and a model of "
                f"{cls.model.labels}; declare one label for each of the model's"
            )
        if isinstance(cls.policy, Wait):
            return
        label = cls.label
        if not isinstance(label, Label) or label.value is not None:
            raise DeclarationError(f"learner {cls.name}: policy {cls.policy} is for one label of 0 and 1; write Wait()")
        if not cls.model.loss.is_binary:
            raise DeclarationError(f"learner {cls.name}: policy {cls.policy} is for a loss of probabilities")
        ages_us(cls.policy, label.within_us)

    @classmethod
    def labels(cls) -> dict[str, Label]:
        """The labels by name, in the order of the model's labels; a single label has the name ""."""
        if cls.label is None:
            return {}
        return {"": cls.label} if isinstance(cls.label, Label) else dict(cls.label)

    @classmethod
    def fingerprints(cls) -> dict[str, str]:
        """Layout fingerprint of each view, by view name."""
        return {plan.name: plan.fingerprint for plan in cls._plans()}

    @classmethod
    def check_inputs(cls, inputs: Inputs) -> None:
        """Check that inputs were assembled by this learner's spec.

        Raises:
            SchemaError: the fingerprints differ.
        """
        if inputs.fingerprint != cls.inputs.fingerprint:
            raise SchemaError(
                f"learner {cls.name}: inputs of spec {inputs.fingerprint}, it reads {cls.inputs.fingerprint}; "
                "assemble with the learner's own InputSpec"
            )

    @classmethod
    def _plans(cls) -> list[ViewPlan]:
        return plans_of(cls.views, f"learner {cls.name}") if cls.views else []


def require_learner(learner: object) -> None:
    """Check that `learner` is the declaration of a learner.

    Raises:
        DeclarationError: it is not.
    """
    if not (isinstance(learner, type) and issubclass(learner, Learner)) or learner is Learner:
        given = "Learner itself" if learner is Learner else f"{learner!r:.80}"
        raise DeclarationError(f"learner: {given}; give a class declared as `class Ranking(Learner): ...`")


def _is_label(label: object) -> bool:
    """Whether `label` is a label, None, or a dict of labels whose names are identifiers."""
    if isinstance(label, Mapping):
        named = all(isinstance(name, str) and name.isidentifier() for name in label)
        return bool(label) and named and all(isinstance(one, Label) for one in label.values())
    return label is None or isinstance(label, Label)
