"""Features: views over events, windows, records in memory, and the online store."""

from polars import col as col

from headrace.features.aggregations import *  # noqa: F403 - the list of aggregations is kept there
from headrace.features.aggregations.aggregation import Cell as Cell
from headrace.features.aggregations.aggregation import Cells as Cells
from headrace.features.aggregations.aggregation import Windowed as Windowed
from headrace.features.aggregations.aggregation import aggregation as aggregation
from headrace.features.answer import Answer as Answer
from headrace.features.answer import Feature as Feature
from headrace.features.answer import Lists as Lists
from headrace.features.argument_types import Value as Value
from headrace.features.event_rows import Rows as Rows
from headrace.features.keys import entity_ids as entity_ids
from headrace.features.keys import ids_of_texts as ids_of_texts
from headrace.features.keys import shard_of as shard_of
from headrace.features.state.record import Header as Header
from headrace.features.state.record import read_header as read_header
from headrace.features.state.record import read_packed as read_packed
from headrace.features.state.rings.cells import ADD as ADD
from headrace.features.state.rings.cells import MAX as MAX
from headrace.features.state.rings.cells import MIN as MIN
from headrace.features.state.slab import Slab as Slab
from headrace.features.store.store import OnlineStore as OnlineStore
from headrace.features.view import FeatureView as FeatureView
from headrace.features.view import ViewPlan as ViewPlan
from headrace.features.view import is_base as is_base
from headrace.features.view import plan_of as plan_of
from headrace.features.view import plans_of as plans_of
from headrace.kernels.id_map import IdMap as IdMap
from headrace.kernels.texts import hash_text as hash_text
