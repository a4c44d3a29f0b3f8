"""Training examples from two sources: joined requests, and events with features as of their time.

    joined request   features bytes (what the model read), labels            -> inputs as served   log-rate 0
    event (positive) replay -> as-of read of it and of k drawn negatives     -> inputs assembled   log-rate log(ref / k)

A request, or a positive with its negatives, is a group of rows that are ranked together and never split.
"""

from headrace.pipelines.examples.from_events import DrawnExamples as DrawnExamples
from headrace.pipelines.examples.from_events import EventExamples as EventExamples
from headrace.pipelines.examples.from_events import answer_frame as answer_frame
from headrace.pipelines.examples.from_requests import RequestColumns as RequestColumns
from headrace.pipelines.examples.from_requests import requests_to_examples as requests_to_examples
from headrace.pipelines.examples.groups import EVENTS as EVENTS
from headrace.pipelines.examples.groups import LATE as LATE
from headrace.pipelines.examples.groups import REQUESTS as REQUESTS
from headrace.pipelines.examples.groups import SOURCES as SOURCES
from headrace.pipelines.examples.groups import Examples as Examples
