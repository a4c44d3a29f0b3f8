"""The joiner inside a flow: plain loop, one worker and two give the same labelled requests, in the same order."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from headrace.pipelines import Flow, JoinSpec, KafkaSource, TopicWriter, create_topics
from headrace.pipelines.flow import join
from headrace.schemas import Event
from tests.pipelines.test_flows import RUNNERS, run_as
from tests.turnstiles import START_US, Followed, Shelf, Shown


def on_topics(topic: str) -> tuple[type[Event], type[Event], JoinSpec]:
    """`Shown` and `Followed` on topics of one test."""

    class ShownHere(Shown, topic=f"{topic}-shown", key="visitor", time="at", id="request_id"):
        pass

    class FollowedHere(Followed, topic=f"{topic}-followed", key="guest", time="moment", id="follow_id"):
        pass

    spec = JoinSpec(ShownHere, FollowedHere, "signs", "sign", 30_000_000, pl.col("how") == "walked")
    return ShownHere, FollowedHere, spec


def log(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """2,000 requests and 2,000 engagements over an hour, each in order of time."""
    rng = np.random.default_rng(seed)

    def moments() -> pl.Series:
        return pl.Series(START_US + np.sort(rng.integers(0, 3_600_000_000, 2_000))).cast(pl.Datetime("us", "UTC"))

    ids = [f"{i:05d}" for i in range(2_000)]
    shown = pl.DataFrame(
        {
            "request_id": ids,
            "at": moments(),
            "visitor": rng.integers(0, 20, 2_000),
            "signs": rng.integers(0, 30, (2_000, 10)).tolist(),
            "features": [b"f" + i.encode() for i in ids],
        }
    )
    followed = pl.DataFrame(
        {
            "follow_id": ids,
            "moment": moments(),
            "guest": rng.integers(0, 20, 2_000),
            "sign": rng.integers(0, 30, 2_000),
            "how": rng.choice(["walked", "read"], 2_000),
        }
    )
    return shown, followed


def labelled(runner: str, broker: str, topic: str, state=None) -> pl.DataFrame:
    shown, followed, spec = on_topics(topic)
    source, frames = KafkaSource(broker, [shown, followed], until_end=True, rows_max=300), []
    requests = join(spec, state=state, idle_s=None, out=frames.append)
    run_as(runner, Flow("join", source, (shown, followed), [requests], dead_letters=Shelf()))
    return pl.concat(frames) if frames else pl.DataFrame()


def test_every_runner_gives_the_same_requests_in_the_same_order(broker, topic, tmp_path):
    shown, followed, spec = on_topics(topic)
    create_topics(broker, {f"{topic}-shown": 3, f"{topic}-followed": 2})
    requests, engagements = log()
    for event, frame in ((shown, requests), (followed, engagements)):
        writer = TopicWriter(broker, event)
        writer.write(frame)
        writer.close()
    found = {runner: labelled(runner, broker, topic, tmp_path / runner) for runner in RUNNERS}
    assert found["loop"]["request_id"].to_list() == requests.sort("at", "request_id")["request_id"].to_list()
    assert found["loop"]["labels"].list.sum().sum() > 50
    for runner in RUNNERS[1:]:
        assert_frame_equal(found[runner], found["loop"])
    walked = engagements.filter(pl.col("how") == "walked")
    naive = (
        requests.explode("signs")
        .join(walked, left_on=["visitor", "signs"], right_on=["guest", "sign"])
        .filter((pl.col("moment") >= pl.col("at")) & (pl.col("moment") < pl.col("at") + pl.duration(seconds=30)))
        .select("request_id", "signs")
        .unique()
    )
    positives = (
        found["loop"].select("request_id", "signs", "labels").explode("signs", "labels").filter(pl.col("labels") == 1)
    )
    assert_frame_equal(positives.select("request_id", "signs").unique(), naive, check_row_order=False)
    assert spec.step_us < spec.within_us


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_second_run_brings_only_what_is_new(runner, broker, topic, tmp_path):
    """Everything ended and came out, state kept: nothing comes twice, and what the topic got since comes next."""
    shown, _, _ = on_topics(topic)
    create_topics(broker, {f"{topic}-shown": 1, f"{topic}-followed": 1})
    writer = TopicWriter(broker, shown)
    requests = log()[0]
    for begin, end in ((0, 1_500), (1_500, 1_500), (1_500, 2_000)):
        writer.write(requests[begin:end])
        writer.flush()
        found = labelled(runner, broker, topic, tmp_path)
        assert found.height == end - begin
        assert found.is_empty() or found["request_id"].to_list() == requests[begin:end]["request_id"].to_list()
