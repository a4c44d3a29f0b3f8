"""The packed form: golden bytes, damage, versions; and the slab around it."""

import random
from datetime import datetime
from importlib import import_module

import numpy as np
import polars as pl
import pytest

from headrace.errors import LayoutError, SchemaError
from headrace.features import (
    Count,
    CountBy,
    FeatureView,
    Last,
    LastN,
    Sequence,
    Slab,
    entity_ids,
    hash_text,
    ids_of_texts,
    plan_of,
    read_header,
    read_packed,
)
from headrace.features.state import record
from headrace.kernels.spans import values_of
from headrace.kernels.texts import TextPool
from headrace.schemas import Event
from tests.rides import BASE_US, GOLDEN, GOLDEN_ONCE, RiderOnce, RiderTrips, add, golden_records, ride

KERNELS = [
    "features.state.blocks",
    "features.state.lists.packing",
    "features.state.lists.unpacking",
    "features.state.lists.update",
    "features.state.operations",
    "features.state.record",
    "features.state.rings.cells",
    "features.state.rings.codec",
    "features.state.rings.update",
    "features.state.seen",
    "features.state.slab",
    "kernels.hashing",
    "kernels.id_map",
    "kernels.texts",
]


class Parcel(Event, topic="parcels", key="code", time="seen_at"):
    """A scan without an id: the row is its id."""

    seen_at: datetime
    code: str
    depot: int
    weight: float | None
    label: str | None
    tags: list[str]


class ParcelPath(FeatureView, source=Parcel, entity=("code", "depot")):
    """A composite key."""

    scans = Count(windows=("1h", "lifetime"))
    labels = LastN("label", n=3)
    path = Sequence("label", "weight", n=3)


class Seen(FeatureView, source=Parcel, entity="code"):
    """A text key."""

    scans = Count(windows="lifetime")
    last = Last("label")


class Labels(FeatureView, source=Parcel, entity="code"):
    """Texts that are keys of a tally."""

    labels = CountBy("label", keep=3, windows="1h")


def scans(codes, **columns):
    """Scans a second apart."""
    n = len(codes)
    frame = {
        "seen_at": [BASE_US + i * 1_000_000 for i in range(n)],
        "code": codes,
        "depot": [1] * n,
        "weight": [0.5] * n,
        "label": [f"l{i}" for i in range(n)],
        "tags": [["a"]] * n,
    }
    schema = {"code": pl.String, "weight": pl.Float64, "label": pl.String, "tags": pl.List(pl.String)}
    return pl.DataFrame(frame | columns, schema_overrides=schema).with_columns(
        pl.col("seen_at").cast(pl.Datetime("us", "UTC"))
    )


def test_golden_records():
    """Bytes on the wire are fixed: `python -m tests.rides` remakes them, with a new record version only."""
    fingerprint, *records = GOLDEN.read_text().split()
    assert records == golden_records()
    assert plan_of(RiderTrips).fingerprint == fingerprint
    header = read_header(bytes.fromhex(records[0]))
    assert (header.version, header.sequence, header.arrival_us) == (fingerprint[:8], 3, BASE_US + 1)


def test_a_quiet_entity_is_small():
    """One event, 37 features: some tens of bytes beside the texts."""
    slab = Slab(plan_of(Seen))
    slab.update(slab.plan.rows(Parcel, scans(["a"])))
    assert len(slab.pack(slab.rows())[0]) == (4 + 1 + 5 + 8) + 3 + (1 + 1 + 4 + 1 + 2)


def test_damaged_records_are_refused():
    """Every cut, and many changed bytes: an error or other values, never a crash."""
    blobs = [bytes.fromhex(line) for line in GOLDEN.read_text().split()[1:]]
    plan = plan_of(RiderTrips)
    ids, texts = entity_ids(plan, pl.DataFrame({"rider": [0]}))
    for end in range(0, len(blobs[1]), 7):
        with pytest.raises(LayoutError, match="view rider_trips: record 0 of the batch is damaged"):
            read_packed(plan, ids, texts, [blobs[1][:end]], BASE_US)
    with pytest.raises(LayoutError, match="damaged"):
        read_packed(plan, ids, texts, [blobs[1] + b"\0"], BASE_US)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        blob = bytearray(blobs[1])
        blob[rng.integers(32, len(blob))] = rng.integers(256)
        try:
            read_packed(plan, ids, texts, [bytes(blob)], BASE_US)
        except LayoutError:
            refused += 1
    assert refused > 100


def ways_to_break(blob, other):
    """A record that is empty, cut, longer, of another layout, no record at all, and some with other bytes."""
    changed = np.random.default_rng(3).integers(32, len(blob), 40)
    bytes_changed = [blob[:at] + bytes([blob[at] ^ 255]) + blob[at + 1 :] for at in changed.tolist()]
    return [b"", blob[:3], blob[: len(blob) // 2], blob + b"\0", other, b"\0garbage\xff" * 9, *bytes_changed]


@pytest.mark.parametrize("view", [RiderTrips, RiderOnce])
@pytest.mark.parametrize("contiguous", [True, False])
def test_a_damaged_record_is_missing_and_costs_no_other(monkeypatch, view, contiguous):
    """Blocks of 16 records, damage amid them: every other answer is what it is where the damaged are missing."""
    monkeypatch.setattr(record, "BLOCK_ROWS", 16)
    plan, rng = plan_of(view), random.Random(5)
    slab = Slab(plan)
    for rider in range(60):
        add(slab, [ride(100 * rider + i, BASE_US + i * 10**7, rider, rng) for i in range(20)])
    rows = slab.rows()
    blobs, now_us = slab.pack(rows), BASE_US + 300 * 10**6
    golden_other = bytes.fromhex((GOLDEN if view is RiderOnce else GOLDEN_ONCE).read_text().split()[1])
    broken = ways_to_break(blobs[7], golden_other)
    rng.shuffle(broken)
    mixed = [blob for pair in zip(blobs, broken, strict=False) for blob in pair] + blobs[len(broken) :]
    reader = record.PackedReader(plan, len(mixed), now_us, contiguous=contiguous)
    reader.add(0, values_of(mixed))
    assert set(reader.damaged) <= set(range(1, 2 * len(broken), 2))
    assert len(reader.damaged) > 10
    assert "view " in str(reader.damage)
    whole = [None if i in set(reader.damaged) else blob for i, blob in enumerate(mixed)]
    expected = record.PackedReader(plan, len(mixed), now_us, contiguous=contiguous)
    expected.add(0, values_of(whole))
    assert expected.damage is None
    answer, right = reader.answer(), expected.answer()
    assert (answer.found == right.found).all()
    assert answer.to_polars().equals(right.to_polars())


@pytest.mark.parametrize("view", ["Seen", "Labels"])
def test_a_text_that_is_not_utf8_is_damage(view):
    """It would end in a frame as a string that no reader of the frame can trust."""
    plan = plan_of({"Seen": Seen, "Labels": Labels}[view])
    slab = Slab(plan)
    slab.update(slab.plan.rows(Parcel, scans(["a"], label=["a label of a parcel"])))
    [blob] = slab.pack(slab.rows())
    for text in (b"a label \xff\xfe a parcel", b"a label of a parce\xc3"):
        damaged = blob.replace(b"a label of a parcel", text[:19])
        assert damaged != blob
        with pytest.raises(LayoutError, match="damaged"):
            read_packed(plan, *entity_ids(plan, pl.DataFrame({"code": ["a"]})), [damaged], BASE_US + 10**7)
        with pytest.raises(LayoutError, match="damaged"):
            Slab(plan).load(slab.ids(slab.rows()), slab.texts(slab.rows()), [damaged])


def test_another_layout_is_refused_and_leaves_nothing_behind():
    """The error names both versions; the slab holds what it held."""
    slab, other = Slab(plan_of(Seen)), Slab(plan_of(ParcelPath))
    other.update(other.plan.rows(Parcel, scans(["a"])))
    blob = other.pack(other.rows())[0]
    with pytest.raises(LayoutError, match=f"layout {other.plan.version}, this declaration is {slab.plan.version}"):
        slab.load(hash_text(["a"]), [b"a"], [blob])
    assert len(slab) == 0
    with pytest.raises(LayoutError, match="shorter than a header"):
        read_header(b"short")


def test_text_keys_and_composite_keys():
    """Key texts are unambiguous, ids follow from them, and go round."""
    slab = Slab(plan_of(ParcelPath), 1)
    codes = ["a", "a\x1f", "a\\", "é", "a", ""]
    slab.update(slab.plan.rows(Parcel, scans(codes, depot=[1, 1, 1, 1, 2, 1])))
    texts = slab.texts(slab.rows())
    assert texts == [b"a\x1f1", b"a\\\x1f\x1f1", b"a\\\\\x1f1", "é\x1f1".encode(), b"a\x1f2", b"\x1f1"]
    ids = slab.ids(slab.rows())
    assert ids_of_texts(slab.plan, texts).tolist() == ids.tolist()
    asked = pl.DataFrame({"code": ["é", "nobody", None], "depot": [1, 1, 1]})
    found, names = entity_ids(slab.plan, asked)
    assert slab.locate(found).tolist() == [3, -1, -1]
    assert names == ["é\x1f1".encode(), b"nobody\x1f1", b""]


def test_rows_of_null_keys_are_left_out_and_the_rest_keep_their_place():
    """`index` is the row in the frame; `texts` may be asked for some."""
    rows = plan_of(Seen).rows(Parcel, scans(["a", None, "b"]))
    assert rows.index.tolist() == [0, 2]
    assert rows.texts() == [b"a", b"b"]
    assert rows.texts(np.array([1])) == [b"b"]
    some = rows.take(np.array([False, True]))
    assert (len(some), some.texts(), some.time_us.tolist()) == (1, [b"b"], [BASE_US + 2_000_000])
    assert len(plan_of(Seen).rows(Parcel, scans([]))) == 0


def test_events_without_an_id_are_told_apart_by_their_values():
    """The same scan twice is one element of a list; one that differs in any column is another."""
    once = scans(["a"])
    other = [
        once.with_columns(tags=pl.Series([["b"]])),
        once.with_columns(weight=pl.lit(None, pl.Float64)),
        once.with_columns(label=pl.lit("other")),
    ]
    slab = Slab(plan_of(ParcelPath))
    for frame in (once, *other, once, *other):
        slab.update(slab.plan.rows(Parcel, frame))
    answer = slab.read(slab.rows(), BASE_US + 1)
    assert answer.columns["labels"].lengths.tolist() == [3]
    assert answer.columns["scans_lifetime"].tolist() == [8]


def test_dirty_rows_drop_and_reuse():
    """What changed is dirty; a dropped record is gone, its row serves the next entity, empty."""
    slab = Slab(plan_of(Seen), 1)
    slab.update(slab.plan.rows(Parcel, scans(["a", "b", "a"])))
    assert slab.dirty().tolist() == [0, 1]
    slab.clear_dirty(np.array([0]))
    slab.drop(slab.locate(hash_text(["b"])))
    assert (slab.dirty().tolist(), len(slab)) == ([], 1)
    slab.load(hash_text(["c", "d"]), [b"c", b"d"], [None, None])
    assert slab.dirty().tolist() == []
    assert slab.locate(hash_text(["c", "d"])).tolist() == [1, 2]
    assert slab.texts(np.array([1, 2])) == [b"c", b"d"]
    answer = slab.read(np.array([0, 1, -1]), BASE_US + 5_000_000)
    assert answer.found.tolist() == [True, False, False]
    assert answer.age_us.tolist() == [3_000_000, -1, -1]
    assert answer.columns["scans_lifetime"].tolist() == [2, 0, 0]
    assert answer.empty["last"].tolist() == [False, True, True]
    assert slab.nbytes > 0


def test_numeric_and_frame_forms_of_an_answer():
    """Texts are hashes in one, texts in the other; absent is 0 and null."""
    slab = Slab(plan_of(ParcelPath))
    slab.update(slab.plan.rows(Parcel, scans(["a", "a"], label=["x", "y"], weight=[None, 2.0])))
    answer = slab.read(np.array([0, -1]), BASE_US + 5_000_000)
    labels = answer.columns["labels"]
    assert labels.values.tolist() == [[*hash_text(["y", "x"]).tolist(), 0], [0, 0, 0]]
    assert answer.columns["path_weight"].values[0, 1] == 2.0
    frame = answer.to_polars("p.")
    assert frame["p.labels"].to_list() == [["y", "x"], []]
    assert frame["p.path_label"].to_list() == [["x", "y"], []]
    assert frame["p.path_weight"].to_list() == [[None, 2.0], []]
    assert len(answer) == 2


def test_texts_of_another_process_are_learnt_from_its_records(monkeypatch):
    """A record carries its texts, so a reader that never saw the events can tell them."""
    slab = Slab(plan_of(Seen))
    slab.update(slab.plan.rows(Parcel, scans(["a"], label=["only here"])))
    ids, texts, blobs = slab.ids(slab.rows()), slab.texts(slab.rows()), slab.pack(slab.rows())
    empty = TextPool()
    monkeypatch.setattr("headrace.features.state.lists.group.POOL", empty)
    answer = read_packed(slab.plan, ids, texts, blobs, BASE_US + 1)
    assert empty.texts(answer.columns["last"]).to_list() == ["only here"]


def test_rows_refuse_what_does_not_fit():
    """Missing columns, nulls in time, values that cannot be cast."""
    plan = plan_of(Seen)
    with pytest.raises(SchemaError, match="view seen · event Parcel.*'?label'?"):
        plan.rows(Parcel, scans(["a"]).drop("label"))
    with pytest.raises(SchemaError, match="seen_at is null in 1 rows"):
        plan.rows(Parcel, scans(["a"]).with_columns(seen_at=pl.lit(None, pl.Datetime("us", "UTC"))))
    with pytest.raises(SchemaError, match="view seen · event Parcel"):
        plan.rows(Parcel, scans(["a"]).with_columns(seen_at=pl.lit("noon")))


def test_every_kernel_is_compiled_once():
    """One signature each: a second would double a newcomer's first start. Rings have one without params.

    Bytes that cannot be written, a message's, count as those that can: small kernels get both, from two decoders.
    """
    slab = Slab(plan_of(ParcelPath), 1)
    slab.update(slab.plan.rows(Parcel, scans(["a", "b", None] * 1_000)))
    rows = slab.rows()
    ids, texts, blobs = slab.ids(rows), slab.texts(rows), slab.pack(rows)
    slab.drop(rows)
    slab.load(ids, texts, blobs)
    read_packed(slab.plan, ids, texts, blobs, BASE_US)
    signatures = {
        name: len({str(signature).replace("'C', True", "'C', False") for signature in value.signatures})
        for module in KERNELS
        for name, value in vars(import_module(f"headrace.{module}")).items()
        if hasattr(value, "signatures") and not value.targetoptions.get("forceinline")
    }
    assert signatures
    assert {name: count for name, count in signatures.items() if count > 1 + (name == "run_ring")} == {}
