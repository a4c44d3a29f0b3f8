"""The joiner's law: requests and labels are a function of the set of events, not of how they came."""

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from headrace.errors import ConfigError, DeclarationError, SnapshotError, SourceError
from headrace.learners import Label
from headrace.pipelines.join_step import JoinStep
from headrace.pipelines.joiner import Joiner
from headrace.pipelines.joining.engagements import TIME
from headrace.pipelines.joining.labelled import labelled_events
from headrace.pipelines.joining.labels import label_requests
from headrace.pipelines.joining.spec import JoinSpec
from headrace.schemas import spec_of
from headrace.streams.watermark import END_OF_TIME_US
from tests.turnstiles import FOLLOWED as SPEC
from tests.turnstiles import START_US, WITHIN_S, Followed, Passage, Shown, as_batch, passages


@dataclass(frozen=True)
class Show:
    second: int
    visitor: int
    signs: tuple[int, ...]
    number: int = 0

    @property
    def row(self):
        return [f"q{self.number}", instant(self.second), self.visitor, list(self.signs), f"x{self.number}".encode()]


@dataclass(frozen=True)
class Follow:
    second: int
    visitor: int
    sign: int
    how: str = "walked"
    number: int = 0

    @property
    def row(self):
        return [f"f{self.number:03d}", instant(self.second), self.visitor, self.sign, self.how]


def instant(second: float) -> datetime:
    return datetime.fromtimestamp(START_US / 1e6 + second, UTC)


def micros(second: float) -> int:
    return START_US + int(second * 1e6)


def batch(rows: list[Show] | list[Follow], first: int = 0):
    event = Shown if isinstance(rows[0], Show) else Followed
    frame = pl.DataFrame([row.row for row in rows], schema=spec_of(event).polars, orient="row")
    return as_batch(event, frame, first, appended_us=frame[spec_of(event).time].dt.epoch("us").to_numpy() + 5)


def naive(shows: list[Show], follows: list[Follow]) -> list[tuple]:
    """(request id, features, labels, first match's id and second) in order, from the definition."""
    found = []
    for show in sorted(set(shows), key=lambda show: (show.second, f"q{show.number}")):
        matches = [
            min(
                (
                    (follow.second, f"f{follow.number:03d}")
                    for follow in follows
                    if follow.how == "walked"
                    and follow.visitor == show.visitor
                    and follow.sign == sign
                    and show.second <= follow.second < show.second + WITHIN_S
                ),
                default=None,
            )
            for sign in show.signs
        ]
        found.append((f"q{show.number}", f"x{show.number}".encode(), matches))
    return found


def told(frames: list[pl.DataFrame]) -> list[tuple]:
    """What came out, in the form of `naive`."""
    rows = []
    for frame in frames:
        for row in frame.iter_rows(named=True):
            matches = [
                None if moment is None else (int(moment.timestamp() - START_US / 1e6), follow)
                for moment, follow in zip(row["label_times"], row["label_ids"], strict=True)
            ]
            assert row["labels"] == [int(match is not None) for match in matches]
            assert len(row["labels"]) == len(row["signs"])
            assert row["label_appended_us"] == [None if m is None else micros(m[0]) + 5 for m in matches]
            assert row["appended_us"] == int(row["at"].timestamp() * 1e6) + 5
            rows.append((row["request_id"], row["features"], matches))
    return rows


shows_and_follows = st.tuples(
    st.lists(
        st.tuples(st.integers(0, 120), st.integers(0, 2), st.lists(st.integers(0, 4), max_size=4).map(tuple)),
        max_size=12,
    ).map(lambda rows: [Show(*row, number=i) for i, row in enumerate(rows)]),
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 2), st.integers(0, 4), st.sampled_from(["walked", "read"])),
        max_size=40,
    ).map(lambda rows: [Follow(*row, number=i) for i, row in enumerate(rows)]),
)


@settings(max_examples=60)
@given(shows_and_follows, st.randoms(), st.integers(1, 7), st.booleans(), st.sampled_from([3, 1_000]))
def test_any_order_batching_and_duplication_give_the_naive_answer(events, rng: random.Random, size, resumed, most):
    """Events in random order with a lateness of 20 s, a fifth of them twice, the state saved and loaded half way."""
    shows, follows = events
    log = sorted([*shows, *follows], key=lambda event: event.second + rng.random() * 20)
    log = [copy for event in log for copy in [event] * (1 + (rng.random() < 0.2))]
    joiner, frames, offsets = Joiner(SPEC, requests_max=most), [], {Show: 0, Follow: 0}
    for number, begin in enumerate(range(0, len(log), size)):
        part = log[begin : begin + size]
        for kind in rng.sample([Show, Follow], 2):
            rows = [event for event in part if isinstance(event, kind)]
            if rows:
                joiner.add(batch(rows, offsets[kind]))
                offsets[kind] += len(rows)
        later = [event.second for event in log[begin + size :]]
        frames.append(joiner.advance(micros(min([*later, 10_000]) if rng.random() < 0.7 else 0)))
        if resumed and number == 2:
            joiner = reopened(joiner)
    frames.append(joiner.advance(END_OF_TIME_US))
    frames = [frame for frame in frames if frame is not None]
    assert told(frames) == naive(shows, follows)
    assert all(frame.height for frame in frames)
    assert joiner.open_requests == 0


@pytest.mark.parametrize("unknown", [False, True])
def test_requests_that_are_labelled_in_pieces_have_the_labels_of_the_whole(unknown):
    """Among them requests without candidates; one candidate is shown by several requests at a time."""
    rng = np.random.default_rng(0)
    shows = [Show(int(rng.integers(0, 120)), i % 3, tuple(rng.integers(0, 6, i % 4).tolist()), i) for i in range(40)]
    follows = [Follow(int(rng.integers(0, 200)), i % 3, i % 6, "walked", i) for i in range(60)]
    joined = SPEC if not unknown else replace(SPEC, absent_is_unknown=True)
    requests = batch(shows).frame.with_columns(pl.lit(None, pl.Int64).alias("appended_us"))
    labelled, _ = labelled_events(batch(follows).frame.with_columns(pl.lit(5, pl.Int64).alias("appended_us")), joined)
    once = labelled.with_columns(pl.col("moment").dt.epoch("us").alias(TIME))
    whole = label_requests(requests, once, joined, joined.within_us)
    assert whole["labels"].explode().sum() > 10
    for rows in (1, 3, 39):
        assert_frame_equal(label_requests(requests, once, joined, joined.within_us, rows), whole)
    assert_frame_equal(label_requests(requests.clear(), once, joined, joined.within_us, 3), whole.clear())


def test_an_engagement_that_positive_has_no_value_for_is_left_out_and_counted():
    """As one that it is false for; the others of the batch are joined."""
    spec = replace(SPEC, positive=pl.col("how").replace_strict({"walked": True}))
    shows = [Show(0, 1, (3, 4)), Show(5, 2, (4,), number=1)]
    follows = [Follow(1 + i, 1 + i % 2, 4, "read" if i % 3 else "walked", i) for i in range(6)]
    joiner = Joiner(spec)
    joiner.add(batch(shows))
    joiner.add(batch(follows))
    assert told([joiner.advance(END_OF_TIME_US)]) == naive(shows, follows)
    assert joiner.counts["failed_engagements"] == 4


def reopened(joiner: Joiner) -> Joiner:
    """Another joiner with the state of this one."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        joiner.save(folder)
        fresh = Joiner(SPEC, requests_max=1_000)
        fresh.load(folder)
    assert fresh.positions() == joiner.positions()
    return fresh


def test_a_request_waits_for_its_window_and_one_step_at_most():
    joiner = Joiner(SPEC)
    joiner.add(batch([Show(10, 1, (1, 2))]))
    joiner.add(batch([Follow(20, 1, 2), Follow(10 + WITHIN_S, 1, 1, number=1), Follow(9, 1, 1, number=2)]))
    assert joiner.advance(micros(10 + WITHIN_S - 0.001)) is None
    frame = joiner.advance(micros(10 + WITHIN_S) + SPEC.step_us)
    assert frame["labels"].to_list() == [[0, 1]]
    assert frame.columns == [
        *spec_of(Shown).polars,
        "labels",
        "label_times",
        "label_ids",
        "label_appended_us",
        "appended_us",
    ]
    assert dict(frame.schema) == {
        **spec_of(Shown).polars,
        "labels": pl.List(pl.Int8),
        "label_times": pl.List(pl.Datetime("us", "UTC")),
        "label_ids": pl.List(pl.String),
        "label_appended_us": pl.List(pl.Int64),
        "appended_us": pl.Int64,
    }


def test_late_rows_and_duplicates_are_counted():
    """
    second     0      20     40              100 (watermark)      then: request of 50, engagement of 30
    """
    joiner = Joiner(SPEC)
    joiner.add(batch([Show(0, 1, (1,)), Show(0, 1, (1,)), Show(20, 1, (1,), number=1)]))
    joiner.add(batch([Follow(5, 1, 1), Follow(5, 1, 1), Follow(6, 1, 1, "read", number=1)]))
    joiner.advance(micros(100))
    joiner.add(batch([Show(50, 1, (1,), number=2)], first=3))
    joiner.add(batch([Follow(30, 1, 1, number=3)], first=3))
    assert joiner.advance(END_OF_TIME_US) is None
    assert joiner.counts == {
        "requests": 2,
        "unjoined_requests": 1,
        "duplicate_requests": 1,
        "duplicate_engagements": 1,
        "late_requests": 1,
        "late_engagements": 1,
    }


def test_rows_below_the_offsets_are_not_taken_twice():
    joiner = Joiner(SPEC)
    rows = [Show(0, 1, (1,)), Show(1, 1, (1,), number=1), Show(2, 1, (1,), number=2)]
    joiner.add(batch(rows[:2]))
    joiner.add(batch(rows))
    joiner.add(batch(rows[1:], first=1))
    assert joiner.positions() == {"shown/0": 3}
    assert joiner.advance(END_OF_TIME_US)["request_id"].to_list() == ["q0", "q1", "q2"]
    assert "duplicate_requests" not in joiner.counts


def test_memory_is_bounded_by_spilling_what_is_due_last(tmp_path):
    shows = [Show(second, second % 3, (1, 2), number=second) for second in range(100)]
    roomy, tight = Joiner(SPEC), Joiner(SPEC, requests_max=10, spill=tmp_path / "spill")
    for joiner in (roomy, tight):
        for begin in range(0, 100, 5):
            joiner.add(batch(shows[begin : begin + 5], begin))
            joiner.add(batch([Follow(begin + 1, begin % 3, 1, number=begin)], begin // 5))
            assert joiner is roomy or joiner.requests_in_memory <= 10
            assert joiner.open_requests == begin + 5
    assert any((tmp_path / "spill").iterdir())
    assert_frame_equal(tight.advance(END_OF_TIME_US), roomy.advance(END_OF_TIME_US))
    assert not any((tmp_path / "spill").iterdir())
    assert tight.counts["spilled_requests"] >= 90


@pytest.mark.parametrize("unknown", [True, False])
def test_explicit_negatives_and_what_nobody_said(tmp_path, unknown):
    """walked: 1; read: 0, unless it is walked too, before or after; without either: 0, or unknown."""
    spec = replace(SPEC, negative=pl.col("how") == "read", absent_is_unknown=unknown)
    joiner = Joiner(spec)
    joiner.add(batch([Show(0, 1, (1, 2, 3, 4))]))
    hows = [(1, "walked"), (2, "read"), (3, "read"), (3, "walked"), (4, "jumped")]
    joiner.add(batch([Follow(1 + i, 1, sign, how, i) for i, (sign, how) in enumerate(hows)]))
    joiner.save(tmp_path)
    again = Joiner(spec)
    again.load(tmp_path)
    frame = again.advance(END_OF_TIME_US)
    assert frame["labels"].to_list() == [[1, 0, 1, None if unknown else 0]]
    assert frame["label_ids"].to_list() == [["f000", "f001", "f003", None]]
    assert frame.schema["labels"] == pl.List(pl.Int8)
    with pytest.raises(ConfigError, match="belongs to"):
        Joiner(SPEC).load(tmp_path)


def test_numeric_labels_are_the_value_of_the_first_match():
    spec = replace(SPEC, positive=None, value=pl.col("how").str.len_chars() / 2, absent_is_unknown=True)
    joiner = Joiner(spec)
    joiner.add(batch([Show(0, 1, (1, 2))]))
    joiner.add(batch([Follow(2, 1, 1, "walked", 0), Follow(1, 1, 1, "ran", 1)]))
    frame = joiner.advance(END_OF_TIME_US)
    assert frame["labels"].to_list() == [[1.5, None]]
    assert frame.schema["labels"] == pl.List(pl.Float32)


def test_a_label_declares_the_join():
    """Every part of the label is a part of the spec."""
    label = Label(
        Followed, "32s", pl.col("how") == "walked", "sign", negative=pl.col("how") == "read", absent="unknown"
    )
    spec = JoinSpec.of_label(label, Shown, "signs", lateness_us=7)
    assert (spec.within_us, spec.lateness_us, spec.absent_is_unknown) == (WITHIN_S * 1_000_000, 7, True)
    assert (spec.positive is label.positive, spec.negative is label.negative) == (True, True)


@pytest.mark.parametrize("most", [10, 1_000])
def test_kept_requests_stay_in_files_across_save_and_load(tmp_path, most):
    """A save names the files, a load reads none; what was taken is deleted once no checkpoint can name it."""
    shows = [Show(second, second % 3, (1, 2), number=second) for second in range(100)]
    plain, kept = Joiner(SPEC), Joiner(SPEC, requests_max=most)
    kept.keep_in(tmp_path)
    for begin in range(0, 100, 10):
        for joiner in (plain, kept):
            joiner.add(batch(shows[begin : begin + 10], begin))
            joiner.add(batch([Follow(begin + 1, begin % 3, 1, number=begin)], begin // 10))
        kept.save(tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["joiner.json"]
    (tmp_path / "requests" / "9-9-crashed.arrow").write_bytes(b"of a crash")
    again = Joiner(SPEC, requests_max=most)
    again.keep_in(tmp_path)
    again.load(tmp_path / "state")
    assert not (tmp_path / "requests" / "9-9-crashed.arrow").exists()
    assert (again.open_requests, again.requests_in_memory) == (100, 0)
    due = micros(50 + WITHIN_S)
    first = again.advance(due)
    assert_frame_equal(first, plain.advance(due))
    later = Joiner(SPEC, requests_max=most)  # the process dies before its next save: the state is still whole
    later.keep_in(tmp_path)
    later.load(tmp_path / "state")
    assert_frame_equal(later.advance(due), first)
    rest = later.advance(END_OF_TIME_US)
    assert_frame_equal(rest, plain.advance(END_OF_TIME_US))
    later.save(tmp_path / "state")
    assert any((tmp_path / "requests").iterdir())  # an earlier checkpoint may name them
    later.save(tmp_path / "state")
    assert not any((tmp_path / "requests").iterdir())


def test_a_missing_file_of_requests_is_named(tmp_path):
    kept = Joiner(SPEC)
    kept.keep_in(tmp_path)
    kept.add(batch([Show(1, 1, (1,))]))
    kept.save(tmp_path / "state")
    [path] = (tmp_path / "requests").iterdir()
    path.unlink()
    again = Joiner(SPEC)
    again.keep_in(tmp_path)
    with pytest.raises(SnapshotError, match="missing or damaged"):
        again.load(tmp_path / "state")


def test_the_limit_of_engagements_is_named():
    joiner = Joiner(SPEC, engagements_max=2)
    with pytest.raises(ConfigError, match="engagements_max=2"):
        joiner.add(batch([Follow(second, 1, 1, number=second) for second in range(3)]))


def test_engagements_that_nothing_can_match_any_more_are_let_go():
    joiner = Joiner(SPEC)
    for begin in range(0, 1_000, 10):
        joiner.add(batch([Show(begin, 1, (1,), number=begin)], begin // 10))
        joiner.add(batch([Follow(begin + i, 1, 1, number=begin + i) for i in range(10)], begin))
        joiner.advance(micros(begin))
    assert joiner.waiting_engagements < 60


def test_state_of_another_spec_is_refused(tmp_path):
    Joiner(SPEC).save(tmp_path)
    other = JoinSpec(Shown, Followed, "signs", "sign", within_us=5)
    with pytest.raises(ConfigError, match="belongs to"):
        Joiner(other).load(tmp_path)


def test_events_of_another_class_are_refused():
    with pytest.raises(SourceError, match="the joiner takes Shown or Followed, not Passage"):
        Joiner(SPEC).add(as_batch(Passage, passages(1)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidates": "sines"}, "needs column 'sines'; Shown has request_id, at"),
        ({"candidate": "how"}, "Followed wants"),
        ({"engagement_entity": ("how",)}, "Followed wants"),
        ({"within_us": 0}, "must be positive"),
        ({"request_id": "nope"}, "needs column 'nope'"),
    ],
)
def test_a_wrong_declaration_is_refused(wrong, message):
    given = {"request": Shown, "engagement": Followed, "candidates": "signs", "candidate": "sign", "within_us": 1}
    with pytest.raises(DeclarationError, match=message):
        JoinSpec(**{**given, **wrong})


def test_the_step_resumes_from_its_folder_and_open_windows_survive_a_stop(tmp_path):
    """shown 0..9, stop, restart from the offsets, followed, end: each request once, labelled."""
    shows = [Show(second, 1, (1,), number=second) for second in range(10)]
    first = JoinStep(Joiner(SPEC), state=tmp_path, idle_s=None)
    first.expect(["shown/0", "followed/0"])
    first.apply(batch(shows))
    assert first.finish() == []
    again = JoinStep(Joiner(SPEC), state=tmp_path, idle_s=None)
    again.expect(["shown/0", "followed/0"])
    assert again.positions() == {"shown/0": 10}
    empty = as_batch(Shown, pl.DataFrame(schema=spec_of(Shown).polars), 10, ended=True)
    again.apply(empty)
    ended = batch([Follow(5, 1, 1)])
    again.apply(as_batch(Followed, ended.frame, ended=True, appended_us=ended.appended_us))
    [frame] = again.finish()
    assert told([frame]) == naive(shows, [Follow(5, 1, 1)])
    assert JoinStep(Joiner(SPEC), state=tmp_path).joiner.open_requests == 0
    assert len(list(tmp_path.glob("c*"))) == 1
