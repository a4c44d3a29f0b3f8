"""Which purchase labels which ranking: the one that names its request, within the learner's window."""

from headrace.pipelines import JoinSpec, JoinSpecs
from headrace.settings import Settings
from learners.next_item import NextItem
from schemas.retail import Impression


def label_spec(settings: Settings) -> JoinSpec | JoinSpecs:
    """The join of impressions with engagements, for the jobs that label."""
    return JoinSpec.of_learner(
        NextItem,
        Impression,
        "item_ids",
        lateness_us=int(settings.lateness_s * 1e6),
        request_entity=("request_id",),
        engagement_entity=("request_id",),
    )
