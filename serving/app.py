"""The Ray Serve app of this project. Run it: `headrace serve`, or `serve run serving.app:app`."""

from fastapi import FastAPI

from headrace.serving import ImpressionColumns
from headrace.serving.on_ray import build_app
from headrace.serving.replica import build_replica
from headrace.settings import load_settings
from learners.next_item import NextItem
from schemas.retail import Impression

COLUMNS = ImpressionColumns(candidates="item_ids", shadow="frozen_scores")


def make_http() -> FastAPI:
    """The HTTP application of one replica, with settings from the environment."""
    return build_replica(NextItem, Impression, entity=("customer_id",), candidate="item_id", columns=COLUMNS)


app = build_app(make_http, num_replicas=load_settings().replicas)
