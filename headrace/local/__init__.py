"""Embedded services for one machine: a real Redis and a real Kafka-protocol broker, which end with their parent."""

from headrace.local.broker import EmbeddedBroker as EmbeddedBroker
from headrace.local.ports import free_port as free_port
from headrace.local.redis_server import EmbeddedRedis as EmbeddedRedis
from headrace.local.stack import LocalStack as LocalStack
