"""Pipelines from streams and files to the online store, to labelled examples and to trained models.

A `Flow` describes a source and the jobs that process its events; `runner` runs it under Bytewax or in the plain loop.
Readers and writers of a broker are imported on first use, since their client is an optional package.
"""

import importlib
from typing import TYPE_CHECKING, Any

from headrace.pipelines.archiver import Archiver as Archiver
from headrace.pipelines.flow import Flow as Flow
from headrace.pipelines.flow import Job as Job
from headrace.pipelines.flow import Place as Place
from headrace.pipelines.join_step import JoinStep as JoinStep
from headrace.pipelines.joiner import Joiner as Joiner
from headrace.pipelines.joining.spec import JoinSpec as JoinSpec
from headrace.pipelines.joining.spec import JoinSpecs as JoinSpecs
from headrace.pipelines.loop import Step as Step
from headrace.pipelines.loop import graceful_stop as graceful_stop
from headrace.pipelines.materializer import FlushSummary as FlushSummary
from headrace.pipelines.materializer import Freshness as Freshness
from headrace.pipelines.materializer import Materializer as Materializer
from headrace.pipelines.runner import dataflow as dataflow
from headrace.pipelines.runner import run_flow as run_flow
from headrace.pipelines.shard import ShardSet as ShardSet
from headrace.streams.file_source import FileSource as FileSource
from headrace.streams.intake import Intake as Intake
from headrace.streams.positions import least_positions as least_positions
from headrace.streams.source import Batch as Batch
from headrace.streams.source import EventBatch as EventBatch
from headrace.streams.source import OpenOptions as OpenOptions
from headrace.streams.source import Source as Source
from headrace.streams.watermark import Watermark as Watermark

if TYPE_CHECKING:
    from headrace.streams.kafka_source import KafkaSource as KafkaSource
    from headrace.streams.kafka_writer import KafkaDeadLetters as KafkaDeadLetters
    from headrace.streams.kafka_writer import TopicWriter as TopicWriter
    from headrace.streams.kafka_writer import create_topics as create_topics

_HOMES = {
    "KafkaSource": "headrace.streams.kafka_source",
    "KafkaDeadLetters": "headrace.streams.kafka_writer",
    "TopicWriter": "headrace.streams.kafka_writer",
    "create_topics": "headrace.streams.kafka_writer",
}


def __getattr__(name: str) -> Any:
    """Import a reader or writer of a broker (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
