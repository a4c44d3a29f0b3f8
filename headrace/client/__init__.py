"""Clients of a running service: rankings, scores, features, and the engagements that label rankings.

The only requirement besides Headrace itself is httpx: `pip install 'headrace[client]'`. Loads no torch, Ray or kernel.
"""

from headrace.extras import require

require("httpx")

from headrace.client.answers import FeaturesAnswer as FeaturesAnswer
from headrace.client.answers import RankAnswer as RankAnswer
from headrace.client.answers import Ranked as Ranked
from headrace.client.answers import ScoreAnswer as ScoreAnswer
from headrace.client.answers import ViewRead as ViewRead
from headrace.client.client import AsyncClient as AsyncClient
from headrace.client.client import Client as Client
from headrace.client.engagements import Engagements as Engagements
from headrace.errors import ClientError as ClientError
from headrace.errors import DeadlineError as DeadlineError
from headrace.errors import InvalidRequestError as InvalidRequestError
from headrace.errors import NotReachedError as NotReachedError
from headrace.errors import OverloadedError as OverloadedError
from headrace.errors import ResponseError as ResponseError
from headrace.errors import UnauthorizedError as UnauthorizedError
from headrace.errors import UnavailableError as UnavailableError
from headrace.errors import VersionError as VersionError
