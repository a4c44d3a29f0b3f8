"""Features: views over events, windows, records in memory, and replay."""

from polars import col as col

from headrace.features.aggregations import Count as Count
from headrace.features.aggregations import DecayedCount as DecayedCount
from headrace.features.aggregations import DecayedSum as DecayedSum
from headrace.features.aggregations import First as First
from headrace.features.aggregations import Last as Last
from headrace.features.aggregations import LastN as LastN
from headrace.features.aggregations import Max as Max
from headrace.features.aggregations import Mean as Mean
from headrace.features.aggregations import Min as Min
from headrace.features.aggregations import Ratio as Ratio
from headrace.features.aggregations import Sequence as Sequence
from headrace.features.aggregations import Std as Std
from headrace.features.aggregations import Sum as Sum
from headrace.features.aggregations import TimeSince as TimeSince
from headrace.features.aggregations import Var as Var
from headrace.features.answer import Answer as Answer
from headrace.features.answer import Feature as Feature
from headrace.features.answer import Lists as Lists
from headrace.features.answer import concat_answers as concat_answers
from headrace.features.event_rows import Rows as Rows
from headrace.features.kernels.id_map import IdMap as IdMap
from headrace.features.kernels.text_pool import hash_text as hash_text
from headrace.features.keys import entity_ids as entity_ids
from headrace.features.keys import ids_of_texts as ids_of_texts
from headrace.features.keys import shard_of as shard_of
from headrace.features.record import Header as Header
from headrace.features.record import read_header as read_header
from headrace.features.record import read_packed as read_packed
from headrace.features.replay import Replay as Replay
from headrace.features.replay import replay as replay
from headrace.features.slab import Slab as Slab
from headrace.features.view import FeatureView as FeatureView
from headrace.features.view import ViewPlan as ViewPlan
from headrace.features.view import plan_of as plan_of
