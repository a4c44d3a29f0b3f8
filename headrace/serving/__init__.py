"""Features, scores and rankings over HTTP, with models that change while they serve."""

from headrace.extras import require

require("fastapi", "starlette", "uvicorn")

from headrace.serving.http_app import HttpLimits as HttpLimits
from headrace.serving.http_app import build_http as build_http
from headrace.serving.impressions import Impression as Impression
from headrace.serving.impressions import ImpressionColumns as ImpressionColumns
from headrace.serving.impressions import ImpressionLog as ImpressionLog
from headrace.serving.messages import ErrorResponse as ErrorResponse
from headrace.serving.messages import FeaturesResponse as FeaturesResponse
from headrace.serving.messages import ModelResponse as ModelResponse
from headrace.serving.messages import RankRequest as RankRequest
from headrace.serving.messages import RankResponse as RankResponse
from headrace.serving.messages import ScoreRequest as ScoreRequest
from headrace.serving.messages import ScoreResponse as ScoreResponse
from headrace.serving.queries import RankingSpec as RankingSpec
from headrace.serving.ranker import Ranker as Ranker
from headrace.serving.ranker import Scored as Scored
from headrace.serving.swap import DirectoryReleases as DirectoryReleases
from headrace.serving.swap import LiveModel as LiveModel
from headrace.serving.swap import Loaded as Loaded
from headrace.serving.swap import Releases as Releases
from headrace.serving.swap import Scores as Scores
from headrace.serving.swap import Swap as Swap
from headrace.serving.swap import Swapped as Swapped
