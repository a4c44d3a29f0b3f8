"""Replacing the live model while it serves."""

from headrace.serving.swap.directory import DirectoryReleases as DirectoryReleases
from headrace.serving.swap.directory import verified_scorer as verified_scorer
from headrace.serving.swap.models import LiveModel as LiveModel
from headrace.serving.swap.models import Loaded as Loaded
from headrace.serving.swap.models import Releases as Releases
from headrace.serving.swap.models import Scores as Scores
from headrace.serving.swap.swap import RefusedModel as RefusedModel
from headrace.serving.swap.swap import Swap as Swap
from headrace.serving.swap.swap import Swapped as Swapped
