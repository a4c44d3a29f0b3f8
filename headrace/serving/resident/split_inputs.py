"""Splits the fields of an `InputSpec` by what they depend on: the candidate alone, the request alone, or both.

    candidate   its key, features of views keyed by it     R rows, or once per candidate while it is resident
    request     entity keys, context, the entity's views   n rows, one per request
    both        Match, Derived, views of pairs             R rows

Each part is assembled by a spec of its fields, and `merged` combines the parts. So a field of the request is computed
once per request instead of once per candidate, and a field of the candidate once per refresh.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from headrace.features import Answer, plan_of
from headrace.learners import Derived, InputSpec
from headrace.learners.input_spec import Columns, Field
from headrace.learners.inputs import Inputs
from headrace.learners.publishing.halves import Part, alone
from headrace.serving.queries import RankingSpec
from headrace.serving.resident.catalogue import CandidateRows, Records

Ints = NDArray[np.int64]


class SplitInputs:
    """The three parts of a ranking's inputs.

    Attributes:
        whole: the learner's spec.
        candidate, request, both: the parts.
        shared: columns of the candidate's views that fields of `both` read.
        kinds: view -> "candidate", "request" or "both", by its keys.
        raw: columns that functions of the declaration read; keys among them are passed as sent, not as ids.
    """

    def __init__(self, ranking: RankingSpec) -> None:
        self.whole = ranking.learner.inputs
        self._candidate = ranking.candidate
        self.kinds: dict[str, str] = {}
        for plan in map(plan_of, ranking.learner.views):
            alone = "candidate" if plan.entity == (ranking.candidate,) else "both"
            self.kinds[plan.name] = alone if ranking.candidate in plan.entity else "request"
        fields: dict[str, list[Field]] = {"candidate": [], "request": [], "both": []}
        for each in self.whole.fields:
            fields[self._kind(each)].append(each)
        self.candidate, self.request, self.both = (Part.of(self.whole, some) for some in fields.values())
        derived = [each for each in self.whole.fields if isinstance(each, Derived)]
        self.raw = frozenset(column for each in derived for column in each.columns)
        read_by_both = self.both.spec.columns if self.both.spec else ()
        self.shared = tuple(c for c in read_by_both if "." in c and self._kind_of_column(c) == "candidate")

    def _kind(self, each: Field) -> str:
        kinds = {self._kind_of_column(column) for column in InputSpec(alone(each)).columns}
        return kinds.pop() if len(kinds) == 1 else "both"

    def _kind_of_column(self, column: str) -> str:
        view, dot, _ = column.rpartition(".")
        if dot:
            return self.kinds.get(view, "both")  # an unknown view is reported elsewhere
        return "candidate" if column == self._candidate else "request"

    def rows_of(self, answers: Mapping[str, Answer], columns: Columns, rows: int) -> CandidateRows:
        """Build the values of `rows` candidates that depend on the candidate alone.

        Args:
            answers: answers of the candidate's views, by name.
            columns: columns of the answers, and the candidate's key.
        """
        shared = {name: columns[name] for name in self.shared}
        records = {view: Records.of(answer) for view, answer in answers.items()}
        return CandidateRows(self.candidate.assemble(columns, rows), shared, records)

    def merged(self, candidates: Inputs, requests: Inputs, both: Inputs, owners: Ints | None) -> Inputs:
        """Merge the parts to whole inputs (R,); row i takes row `owners[i]` of `requests`, the only row if None."""
        rows = len(candidates)
        if owners is not None:
            requests = requests.take(owners)
        ids = np.empty((rows, len(self.whole.categoricals)), np.int64)
        dense = np.empty((rows, len(self.whole.numbers)), np.float32)
        bags: dict[int, NDArray[np.int64]] = {}
        parts = (self.candidate, candidates), (self.request, requests), (self.both, both)
        for part, inputs in parts:
            ids[:, part.ids] = inputs.ids
            dense[:, part.numbers] = inputs.dense
            bags.update(zip(part.bags.tolist(), inputs.bags, strict=True))
        placed = tuple(bags[i] for i in range(len(bags)))
        one_for_all = (np.broadcast_to(bag, (rows, bag.shape[1])) if len(bag) != rows else bag for bag in placed)
        return Inputs(ids, tuple(one_for_all), dense, self.whole.fingerprint)
