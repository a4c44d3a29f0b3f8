"""Lanes: each has a thread that works on a batch while the next requests gather."""

from headrace.serving.lanes.lane import ClientGoneError as ClientGoneError
from headrace.serving.lanes.lane import Job as Job
from headrace.serving.lanes.lane import Lane as Lane
from headrace.serving.lanes.lane import until_gone as until_gone
from headrace.serving.lanes.one_cpu import OneCpu as OneCpu
