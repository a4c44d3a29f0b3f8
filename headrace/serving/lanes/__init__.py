"""Lanes: requests gather while a batch is worked on, each lane in a thread of its own."""

from headrace.serving.lanes.lane import ClientGoneError as ClientGoneError
from headrace.serving.lanes.lane import Job as Job
from headrace.serving.lanes.lane import Lane as Lane
from headrace.serving.lanes.lane import until_gone as until_gone
from headrace.serving.lanes.one_cpu import OneCpu as OneCpu
