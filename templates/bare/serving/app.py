"""The Ray Serve app of this project. Run it: `headrace serve`, or `serve run serving.app:app`."""

from fastapi import FastAPI

from headrace.serving import ImpressionColumns
from headrace.serving.on_ray import build_app
from headrace.serving.replica import build_replica
from headrace.settings import load_settings
from learners.ranking import ENTITY, Ranking
from schemas.events import Impression


def make_http() -> FastAPI:
    """The HTTP application of one replica, with settings from the environment."""
    columns = ImpressionColumns(candidates="candidates", shadow=None)
    return build_replica(Ranking, Impression, entity=ENTITY, candidate=Ranking.label.candidate, columns=columns)


app = build_app(make_http, num_replicas=load_settings().replicas)
