"""What an event is: its declaration, wire formats, quality rules, dead letters and evolution."""

from headrace.schemas.avro import AvroCodec as AvroCodec
from headrace.schemas.avro import ConfluentAvroCodec as ConfluentAvroCodec
from headrace.schemas.codec import BadPayload as BadPayload
from headrace.schemas.codec import Codec as Codec
from headrace.schemas.codec import Decoded as Decoded
from headrace.schemas.codec import codec_for as codec_for
from headrace.schemas.conform import conform as conform
from headrace.schemas.dead_letters import DeadLetter as DeadLetter
from headrace.schemas.dead_letters import DeadLetters as DeadLetters
from headrace.schemas.dead_letters import FileDeadLetters as FileDeadLetters
from headrace.schemas.dead_letters import count_letters as count_letters
from headrace.schemas.dead_letters import decode_letter as decode_letter
from headrace.schemas.dead_letters import encode_letter as encode_letter
from headrace.schemas.event import Event as Event
from headrace.schemas.event import EventSpec as EventSpec
from headrace.schemas.event import Field as Field
from headrace.schemas.event import arrow_schema as arrow_schema
from headrace.schemas.event import spec_of as spec_of
from headrace.schemas.evolution import Change as Change
from headrace.schemas.evolution import check_lock as check_lock
from headrace.schemas.evolution import write_lock as write_lock
from headrace.schemas.jsonl import rows_as_json as rows_as_json
from headrace.schemas.quality import BadRow as BadRow
from headrace.schemas.quality import Checked as Checked
from headrace.schemas.quality import Quality as Quality
from headrace.schemas.sample import sample_frame as sample_frame
