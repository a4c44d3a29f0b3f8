"""Sources of files side by side in event time: each row once, none behind rows that are far younger.

first   |------ rows 0..a ------|---- ...      poll 1: all below t1    poll 2: t1 to t2    ...
second  |--- rows 0..b ---|------- ...
"""

from datetime import datetime

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from headrace.features import Count, FeatureView, OnlineStore
from headrace.pipelines import Intake, KafkaSource, Materializer, loop
from headrace.schemas import Event, codec_for
from headrace.streams import time_merge
from headrace.streams.files.lines import row_numbers
from headrace.streams.urls import sources_of_urls
from tests.turnstiles import Passage, Shelf, drain, passages

WRITERS = {
    "parquet": lambda frame, path: frame.write_parquet(path, row_group_size=7),
    "csv": lambda frame, path: frame.write_csv(path),
    "jsonl": lambda frame, path: path.write_bytes(b"\n".join(codec_for(Passage, "json").encode(frame))),
}


def times_us(batch) -> list[int]:
    frame = batch.frame if batch.frame is not None else codec_for(Passage, "json").decode(batch.payloads).frame
    return frame["at"].dt.epoch("us").to_list()


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    spans=st.lists(st.integers(1, 200), min_size=4, max_size=4),
    rows_max=st.integers(1, 50),
    stretch=st.integers(1, 40),
    begin=st.integers(0, 30),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_polls_follow_each_other_in_time_whatever_the_files(
    tmp_path_factory, monkeypatch, sizes, spans, rows_max, stretch, begin
):
    monkeypatch.setattr(time_merge, "STRETCH_ROWS", stretch)
    monkeypatch.setattr(time_merge, "SOURCE_ROWS", 1)
    folder, urls, frames = tmp_path_factory.mktemp("files"), [], []
    for number, (size, span) in enumerate(zip(sizes, spans, strict=False)):
        suffix = list(WRITERS)[number % len(WRITERS)]
        frames.append(passages(size, seed=number, span_us=span * 1_000_000).sort("at", maintain_order=True))
        urls.append(str(folder / f"{number}.{suffix}"))
        WRITERS[suffix](frames[-1], folder / f"{number}.{suffix}")
    source = sources_of_urls(urls, [Passage], rows_max=rows_max)
    names = source.partitions()
    source.seek({names[0]: min(begin, sizes[0])})
    newest, found = 0, {name: [] for name in names}
    ended = []
    while not source.exhausted:
        polled = source.poll()
        assert len({batch.partition for batch in polled}) == len(polled)
        for batch in polled:
            numbers = row_numbers(batch.partition, batch.offsets).tolist()
            assert row_numbers(batch.partition, batch.next_offset) == (numbers[-1] + 1 if numbers else sizes[0])
            found[batch.partition] += list(zip(numbers, times_us(batch), strict=True))
            ended += [batch.partition] * batch.ended
        assert all(time >= newest for batch in polled for time in times_us(batch))
        newest = max([newest, *(time for batch in polled for time in times_us(batch))])
    starts = [min(begin, sizes[0]), *[0] * (len(sizes) - 1)]
    for name, frame, start in zip(names, frames, starts, strict=True):
        assert found[name] == list(enumerate(frame["at"].dt.epoch("us").to_list()))[start:]
    assert sorted(ended) == sorted(names)


class Daily(FeatureView, source=Passage, entity="door"):
    """A window that some 12,000 rows fall into."""

    passages = Count(windows="24h")


def test_rows_of_the_second_file_are_not_too_late(tmp_path, redis_url):
    """Two logs of the same ten days, of the same doors."""
    both = passages(120_000, span_us=10 * 86_400_000_000)
    for name, part in (("a", both[::2]), ("b", both[1::2])):
        part.write_parquet(tmp_path / f"{name}.parquet")
    shelf = Shelf()
    with OnlineStore.open(redis_url) as store:
        source = sources_of_urls([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], [Passage])
        loop.run(source, Intake((Passage,), dead_letters=shelf), [Materializer([Daily], store, dead_letters=shelf)])
    apart = len(shelf.letters)
    whole = tmp_path / "whole.parquet"
    both.write_parquet(whole)
    with OnlineStore.open(redis_url, namespace="whole") as store:
        source = sources_of_urls([str(whole)], [Passage])
        loop.run(source, Intake((Passage,), dead_letters=shelf), [Materializer([Daily], store, dead_letters=shelf)])
    assert (apart, len(shelf.letters)) == (0, 0)


class Alarm(Event, topic="alarms", key="door", time="at"):
    """A door was left open."""

    at: datetime
    door: int


class Watched(FeatureView, source=(Passage, Alarm), entity="door"):
    """A window that some ten rows of both classes fall into."""

    happened = Count(windows="10m")


def test_rows_of_another_class_are_not_too_late(tmp_path, redis_url):
    """Many rows are gathered before they are applied: those of two classes go together, in the order of time."""
    both = passages(20_000, span_us=10 * 86_400_000_000).sort("at")
    both[::2].write_parquet(tmp_path / "passages.parquet")
    both[1::2].select("at", "door").write_parquet(tmp_path / "alarms.parquet")
    shelf = Shelf()
    urls = [f"Passage={tmp_path / 'passages.parquet'}", f"Alarm={tmp_path / 'alarms.parquet'}"]
    with OnlineStore.open(redis_url) as store:
        source = sources_of_urls(urls, [Passage, Alarm])
        step = Materializer([Watched], store, dead_letters=shelf)
        loop.run(source, Intake((Passage, Alarm), dead_letters=shelf), [step])
        assert store.read(Watched, [0], now=both["at"][-1])["happened_10m"].len() == 1
    assert not shelf.letters


def test_shares_are_whole_and_topics_stay_apart(tmp_path):
    for name in "ab":
        passages(10, seed=ord(name)).write_parquet(tmp_path / f"{name}.parquet")
    urls = [str(tmp_path / "a.parquet"), "kafka://127.0.0.1:1", str(tmp_path / "b.parquet")]
    source = sources_of_urls(urls, [Passage])
    assert [part.has_live_offsets for part in source.parts()] == [False, False, True]
    assert [type(part) for part in source.sources] == [time_merge.TimeMerge, KafkaSource]
    merged = source.sources[0]
    shares = [merged.share(index, 2) for index in range(2)]
    rows = pl.concat([batch.frame for share in shares for batch in drain(share)])
    wanted = pl.concat([passages(10, seed=ord(name)) for name in "ab"])
    assert_frame_equal(rows.sort("passage_id"), wanted.sort("passage_id"))


@pytest.mark.parametrize("text", ["", "no event", '{"door": 1}'])
def test_a_bad_line_keeps_its_place(tmp_path, text):
    frame = passages(4).sort("at")
    lines = codec_for(Passage, "json").encode(frame)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([lines[0], text.encode() or b"[]", *lines[1:]]))
    frame.write_parquet(tmp_path / "b.parquet")
    source = sources_of_urls([str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")], [Passage])
    batches = [batch for batch in drain(source) if batch.payloads is not None]
    offsets = [(batch.partition, offset) for batch in batches for offset in batch.offsets.tolist()]
    assert [row_numbers(*offset) for offset in offsets] == [0, 1, 2, 3, 4]
