"""From streams and files to the online store and to labelled examples.

`on_bytewax` holds the operators for Bytewax, `loop` the plain runner; both run the same steps.
"""

from headrace.pipelines.archiver import Archiver as Archiver
from headrace.pipelines.file_source import FileSource as FileSource
from headrace.pipelines.freshness import Freshness as Freshness
from headrace.pipelines.intake import Intake as Intake
from headrace.pipelines.join_spec import JoinSpec as JoinSpec
from headrace.pipelines.join_step import JoinStep as JoinStep
from headrace.pipelines.joiner import Joiner as Joiner
from headrace.pipelines.joiner import candidate_rows as candidate_rows
from headrace.pipelines.kafka_source import KafkaSource as KafkaSource
from headrace.pipelines.loop import Step as Step
from headrace.pipelines.loop import graceful_stop as graceful_stop
from headrace.pipelines.materializer import FlushSummary as FlushSummary
from headrace.pipelines.materializer import Materializer as Materializer
from headrace.pipelines.positions import least_positions as least_positions
from headrace.pipelines.shard import ShardSet as ShardSet
from headrace.pipelines.source import Batch as Batch
from headrace.pipelines.source import EventBatch as EventBatch
from headrace.pipelines.source import Source as Source
from headrace.pipelines.topics import KafkaDeadLetters as KafkaDeadLetters
from headrace.pipelines.topics import TopicWriter as TopicWriter
from headrace.pipelines.topics import create_topics as create_topics
from headrace.pipelines.watermark import Watermark as Watermark
