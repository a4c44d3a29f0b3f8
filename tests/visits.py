"""A small domain for tests of the training step: visits of places, and offers of places that some visits asked for.

engagements  e1 e2 e3* e4 ...      * asked for a ranking first: learned with its request, not on its own
requests           r3
"""

from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl

from headrace import Count, FeatureView, LastN
from headrace.history.replay import Replay
from headrace.learners import Bag, Categorical, DeepFM, Dense, InputSpec, Label, Learner, columns_of
from headrace.pipelines import EventBatch, Joiner, JoinSpec
from headrace.pipelines.examples import EventExamples, RequestColumns
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.schemas import Event

START = datetime(2026, 1, 1, tzinfo=UTC)
WITHIN_US = 60_000_000
ROWS = 240
ASKED = set(range(40, ROWS, 7))


class Visit(Event, topic="visits", key="guest", time="at", id="visit_id"):
    visit_id: str
    at: datetime
    guest: int
    place: int
    asked: str | None


class Offer(Event, topic="offers", key="guest", time="at", id="offer_id"):
    offer_id: str
    at: datetime
    guest: int
    places: list[int]
    scores: list[float]
    shadow_scores: list[float]
    features: bytes


class GuestVisits(FeatureView, source=Visit, entity="guest"):
    visits = Count(windows="1h")
    recent = LastN("place", n=4)


class NextPlace(Learner):
    views = (GuestVisits,)
    label = Label(Visit, within="1m", candidate="place")
    inputs = InputSpec(
        Categorical("place"),
        Bag("recent", "guest_visits.recent", table="place", length=4),
        Dense("visits", "guest_visits.visits_1h", transform="log1p"),
    )
    model = DeepFM(dim=4, hidden=(8,))


SPEC = JoinSpec(
    Offer,
    Visit,
    candidates="places",
    candidate="place",
    within_us=WITHIN_US,
    lateness_us=20_000_000,
    request_entity=("offer_id",),
    engagement_entity=("asked",),
)


@cache
def visits() -> pl.DataFrame:
    """Ten seconds apart; every seventh was asked for."""
    rng = np.random.default_rng(5)
    return pl.DataFrame(
        {
            "visit_id": [f"v{i:04d}" for i in range(ROWS)],
            "at": [START + timedelta(seconds=10 * i) for i in range(ROWS)],
            "guest": rng.integers(0, 8, ROWS),
            "place": rng.integers(0, 12, ROWS),
            "asked": [f"o{i}" if i in ASKED else None for i in range(ROWS)],
        },
        schema_overrides={"at": pl.Datetime("us", "UTC")},
    )


@cache
def offers() -> pl.DataFrame:
    """A request just before each visit that was asked for: the place that was chosen among three others."""
    rng = np.random.default_rng(6)
    rows, replay = [], Replay([GuestVisits])
    for visit in visits().filter(pl.col("asked").is_not_null()).iter_rows(named=True):
        others = [place for place in rng.permutation(12).tolist() if place != visit["place"]][:3]
        places = [visit["place"], *others]
        spine = pl.DataFrame({"guest": [visit["guest"]] * 4, "event_time": [visit["at"]] * 4})
        answers = replay.advance({}, spine)
        inputs = NextPlace.inputs.assemble(columns_of(answers, {"place": np.array(places)}), 4)
        scores = rng.random(4).tolist()
        rows.append(
            {
                "offer_id": visit["asked"],
                "at": visit["at"],
                "guest": visit["guest"],
                "places": places,
                "scores": scores,
                "shadow_scores": scores[::-1],
                "features": inputs.to_bytes(),
            }
        )
    return pl.DataFrame(rows, schema_overrides={"at": pl.Datetime("us", "UTC")})


def make(state=None) -> TrainStep:
    events = EventExamples(NextPlace, negatives=3, reference=3, capacity=50)
    columns = RequestColumns(time="at", scores="scores", shadow="shadow_scores")
    cadence = Cadence(rows_min=24, wait_s=None, publish_s=None)
    trainer = Trainer(NextPlace, cadence=cadence, events=events, columns=columns)
    return TrainStep(trainer, Joiner(SPEC), [Visit], state=state, idle_s=1e9)


def batches(sizes: list[int]) -> list[EventBatch]:
    """Both streams cut into batches of these sizes, in turn, no further apart than the lateness allows."""
    found, at = [], {Visit: 0, Offer: 0}
    frames, turn = {Visit: visits(), Offer: offers()}, 0
    while at[Visit] < ROWS:
        size = sizes[turn % len(sizes)]
        turn += 1
        end = min(at[Visit] + size, ROWS)
        until = frames[Visit]["at"][end - 1]
        for event in (Offer, Visit):
            frame = frames[event][at[event] :].filter(pl.col("at") <= until)
            first, at[event] = at[event], at[event] + frame.height
            offsets = np.arange(first, at[event])
            topic = "visits/0" if event is Visit else "offers/0"
            found.append(EventBatch(event, topic, offsets, at[event], frame, None, 0, end == ROWS))
    return found


def run(step: TrainStep, found: list[EventBatch]) -> TrainStep:
    step.expect(["visits/0", "offers/0"])
    known = step.positions()
    for batch in found:
        if batch.next_offset > known.get(batch.partition, 0) or batch.ended:
            step.apply(batch)
        step._released_s = 0.0  # look at the watermark now
        step.tick()
    return step


def weights(step: TrainStep) -> dict[str, np.ndarray]:
    return step.trainer.online.state_dict()
