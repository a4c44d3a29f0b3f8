"""From history to live: one pass over files, then the stream, trains as one trainer that was fed everything.

visits   |-------- files --------|------ topic ------|
offers   |-------- files --------|------ topic ------|
"""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

import headrace
from headrace.errors import ConfigError, DeclarationError, ModelError, SchemaError, SourceError
from headrace.learners import Gate, ModelDirectory, Scorer, Verdict
from headrace.pipelines import Archiver
from headrace.pipelines.from_history.reading import open_history
from headrace.pipelines.from_history.train import Span, train_on
from headrace.schemas import FileDeadLetters
from headrace.streams.positions import refuse_topic_of_files
from tests.visits import ROWS, START, NextPlace, Offer, Visit, batches, make, offers, run, visits, weights

CUT = 130


def history(events: pl.DataFrame, end: int = CUT) -> pl.DataFrame:
    return events.filter(pl.col("at") <= visits()["at"][end - 1])


def ends(*, with_offers: bool = True) -> dict[str, int]:
    offsets = {"visits/0": CUT, "offers/0": history(offers()).height}
    return offsets if with_offers else {"visits/0": CUT}


def drained(step):
    step.trainer.drain()
    return step


def assert_same_weights(one, other):
    expected, got = weights(drained(one)), weights(drained(other))
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)
    assert one.trainer.trained == other.trainer.trained


@pytest.mark.parametrize("pieces", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_history_then_live_is_one_stream(tmp_path, pieces):
    """Files in any number and order, then the topic from the recorded offsets: equal weights, each example once."""
    frame = history(visits())
    for number in range(pieces):
        frame[number::pieces].write_parquet(tmp_path / f"{pieces - number}.parquet")
    state = tmp_path / "state"
    first = make(state)
    done = headrace.train(first, str(tmp_path / "*.parquet"), impressions=history(offers()), handover=ends())
    assert 0 < done.examples < ROWS * 4
    assert done.waiting > 0
    again = make(state)
    assert again.positions().items() >= ends().items()
    assert_same_weights(run(make(), batches([5])), run(again, batches([7])))


def test_history_without_requests_waits_for_none(tmp_path):
    """Events are learned up to the last whole step; the live flow joins the requests that follow."""
    late = offers().filter(pl.col("at") > visits()["at"][CUT - 1])
    stream = [batch for batch in batches([5]) if batch.event is Visit]
    asked = [batch for batch in batches([5]) if batch.event is Offer]
    whole = make()
    done = headrace.train(make(tmp_path), history(visits()), handover=ends(with_offers=False))
    assert done.waiting < 20  # 20 s of lateness and a step: not a window
    live = make(tmp_path)
    merged = [batch for pair in zip(asked, stream, strict=True) for batch in pair]
    cut_us = visits()["at"][CUT - 1]
    later = []
    for batch in merged:
        frame = batch.frame
        keep = (frame["at"] > cut_us).to_numpy() if batch.event is Offer else np.ones(frame.height, bool)
        later.append(replace(batch, frame=frame.filter(pl.Series(keep, dtype=pl.Boolean)), offsets=batch.offsets[keep]))
    assert late.height
    assert_same_weights(run(whole, later), run(live, later))


def test_an_archive_tells_where_the_topic_goes_on(tmp_path):
    """Its offsets are recorded, and no hand-over need be given."""
    archive = Archiver(tmp_path / "archive")
    for batch in batches([10]):
        if batch.event is Visit and batch.next_offset <= CUT:
            archive.apply(batch)
    archive.finish()
    done = headrace.train(NextPlace, tmp_path / "archive", state=tmp_path / "state")
    assert done.positions == {"visits/0": CUT}
    assert done.events == CUT


def test_events_before_since_feed_features_only():
    """Examples begin there; their features know all that was before."""
    since = START + timedelta(seconds=900)
    step = make()
    done = headrace.train(step, history(visits()), since=since)
    assert done.examples == step.trainer.trained
    assert done.events == CUT
    late = visits().filter(pl.col("at").is_between(since, history(visits())["at"][-1]))
    assert 3 * (late.height - done.waiting) < done.examples <= 4 * (late.height - done.waiting)
    assert max(step.trainer._event_examples()._shared.slabs["guest_visits"].rows()) == 7


def test_until_leaves_the_rest_out_and_offsets_unknown():
    """Files that are cut at a time do not end at the offsets of their archive."""
    until = visits()["at"][60]
    step = make()
    done = headrace.train(step, visits(), until=until)
    assert done.events == 60
    assert done.positions == {}
    with pytest.raises(ConfigError, match="was filled from files"):
        refuse_topic_of_files(["visits"], step.positions())


def test_a_topic_that_follows_is_read_from_its_start():
    step = make()
    headrace.train(step, history(visits()), topic_follows=True)
    refuse_topic_of_files(["visits"], step.positions())


def test_the_model_is_published_and_scores(tmp_path):
    """Version 1, with the figures of its examples, and a point of the curve at the end."""
    done = headrace.train(NextPlace, visits(), models=tmp_path)
    directory = ModelDirectory(tmp_path)
    assert done.version == directory.latest() == 1
    Scorer(directory.load(1, NextPlace), NextPlace)
    assert directory.manifest(1).metrics["rows"] == done.examples == done.figures["rows"]
    assert done.curve["examples"].to_list() == [done.examples]
    assert done.curve["logloss"].to_list() == [done.figures["recent"]["logloss"]]
    assert done.learner == "next_place"


class Refusing(Gate):
    def check(self, *_):
        return Verdict(False, ["worse"], {})


def test_a_refused_model_is_neither_published_nor_saved(tmp_path):
    step = make(tmp_path / "state")
    step.trainer.directory = ModelDirectory(tmp_path / "models")
    step.trainer.gate = Refusing()
    with pytest.raises(ModelError, match="refused: worse"):
        headrace.train(step, visits())
    assert ModelDirectory(tmp_path / "models").latest() is None
    assert make(tmp_path / "state").trainer.trained == 0


def test_bad_rows_are_left_out_and_kept(tmp_path):
    """A bad line costs itself alone; it goes where the caller says."""
    lines = visits().with_columns(pl.col("at").dt.to_string("iso:strict")).write_ndjson().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join([*lines[:50], "{no json", *lines[50:]]) + "\n")
    letters = FileDeadLetters(tmp_path / "letters")
    done = headrace.train(make(), tmp_path / "log.jsonl", intake={"dead_letters": letters})
    letters.close()
    assert (done.events, done.left_out) == (ROWS, 1)
    assert len(list((tmp_path / "letters").iterdir())) == 1


def test_progress_is_told():
    told = []
    headrace.train(make(), visits(), report=lambda *words: told.append(words))
    assert told[0] == ("reading", ROWS, None, {})
    what, done, total, recent = told[-1]
    assert (what, done, total) == ("training", ROWS, ROWS)
    assert recent["rows"] > 0


def test_a_history_beyond_memory_is_sorted_on_disk():
    """Bitwise the same model, whatever fits into memory."""
    one, other = make(), make()
    shuffled = visits().sample(fraction=1.0, shuffle=True, seed=1)
    headrace.train(one, visits())
    headrace.train(other, shuffled, memory_rows=40)
    assert_same_weights(one, other)


class Unlabelled(headrace.Learner):
    inputs = NextPlace.inputs
    views = NextPlace.views
    model = NextPlace.model


def test_a_second_training_on_the_same_state_is_refused(tmp_path):
    headrace.train(make(tmp_path), history(visits()))
    with pytest.raises(ConfigError, match="has learned from .* already .visits/history up to 130"):
        headrace.train(make(tmp_path), history(visits()))
    with pytest.raises(ConfigError, match="has learned from"):
        headrace.train(make(tmp_path), history(visits()), since=START)


@pytest.mark.parametrize("span", [{"since": START + timedelta(days=9)}, {"until": START}])
def test_a_trained_state_hides_no_wrong_times(tmp_path, span):
    headrace.train(make(tmp_path), history(visits()))
    with pytest.raises(ConfigError, match="no events of Visit (from|until) 2026-01.*history has 2026-01-01"):
        headrace.train(make(tmp_path), history(visits()), **span)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"events": visits()[:0]}, ConfigError, "no events of Visit in this history"),
        (
            {"since": START + timedelta(days=9)},
            ConfigError,
            "no events of Visit from 2026-01-10.*history has 2026-01-01",
        ),
        ({"until": START}, ConfigError, "no events of Visit until 2026-01-01"),
        ({"since": START, "until": START}, ConfigError, "empty; swap the times"),
        ({"events": visits()[:1]}, ConfigError, "no example in 1 events"),
        ({"events": 7}, SchemaError, "a int is no history"),
        ({"events": {Offer: offers()}}, SchemaError, "no table of Visit"),
        ({"events": "nowhere/*.parquet"}, SourceError, "nowhere"),
        ({"events": visits().drop("place")}, SchemaError, "place"),
        ({"learner": NextPlace, "impressions": offers()}, ConfigError, "a step with a joiner"),
        ({"learner": Unlabelled}, DeclarationError, "no label"),
    ],
)
def test_bad_input_is_one_clear_error(given, error, message):
    arguments = {"learner": make(), "events": visits(), **given}
    with pytest.raises(error, match=message):
        headrace.train(arguments.pop("learner"), arguments.pop("events"), **arguments)


def test_sources_are_taken_as_they_are():
    """What a caller opened itself, such as a topic with its own options, is read to its end."""
    source = open_history(visits(), [Visit])
    assert open_history(source, [Visit]) is source
    assert train_on(make(), [source], Span()).events == ROWS


def test_a_history_of_bad_events_says_what_is_wrong_with_them():
    frame = visits().with_columns(at=pl.lit(None, dtype=pl.Datetime("us", "UTC")))
    message = rf"no events of Visit in this history; {ROWS} bad events were left out, the first for missing: at: null"
    with pytest.raises(ConfigError, match=message):
        headrace.train(NextPlace, frame)
