"""All aggregations, one import each; `headrace` and `headrace.features` re-export this list."""

from typing import TYPE_CHECKING

from headrace.features.aggregations.decayed import DecayedCount as DecayedCount
from headrace.features.aggregations.decayed import DecayedSum as DecayedSum
from headrace.features.aggregations.derived import Ratio as Ratio
from headrace.features.aggregations.distinct import Distinct as Distinct
from headrace.features.aggregations.extremes import Max as Max
from headrace.features.aggregations.extremes import Min as Min
from headrace.features.aggregations.frequencies import CountBy as CountBy
from headrace.features.aggregations.frequencies import TopK as TopK
from headrace.features.aggregations.quantile import Quantile as Quantile
from headrace.features.aggregations.rate import Rate as Rate
from headrace.features.aggregations.recency import First as First
from headrace.features.aggregations.recency import Last as Last
from headrace.features.aggregations.recency import LastN as LastN
from headrace.features.aggregations.recency import Sequence as Sequence
from headrace.features.aggregations.recency import TimeSince as TimeSince
from headrace.features.aggregations.sums import Count as Count
from headrace.features.aggregations.sums import Mean as Mean
from headrace.features.aggregations.sums import Std as Std
from headrace.features.aggregations.sums import Sum as Sum
from headrace.features.aggregations.sums import Var as Var
from headrace.features.aggregations.value_range import Range as Range
from headrace.features.aggregations.vectors import VectorMean as VectorMean

if not TYPE_CHECKING:  # type checkers use the imports above and treat a computed list as empty
    __all__ = sorted(name for name, value in globals().items() if isinstance(value, type))  # noqa: PLE0605
