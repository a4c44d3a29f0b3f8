"""The labels of rankings: a purchase labels the ranking that it names by `request_id`, within the learner's window."""

from headrace.pipelines import JoinSpec, JoinSpecs
from headrace.settings import Settings
from learners.next_item import NextItem
from schemas.retail import Impression


def label_spec(settings: Settings) -> JoinSpec | JoinSpecs:
    """The join of impressions with engagements, for the jobs that need labels."""
    return JoinSpec.of_learner(
        NextItem,
        Impression,
        "item_ids",
        lateness_us=int(settings.lateness_s * 1e6),
        request_entity=("request_id",),
        engagement_entity=("request_id",),
    )
