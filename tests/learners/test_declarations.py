"""Learners, inputs and labels are checked when they are declared; a message names place, what was found and the fix."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from headrace import Count, Event, FeatureView, Last, LastN, Max, Sequence, Sum, col
from headrace.errors import DeclarationError
from headrace.learners import (
    Adagrad,
    Adam,
    Bag,
    Categorical,
    DeepFM,
    Dense,
    Derived,
    Ftrl,
    Gate,
    InputSpec,
    Label,
    Learner,
    Logistic,
    LogLoss,
    Match,
    OnlineLearner,
    Prequential,
    SharedBottom,
    TablePolicy,
)
from headrace.pipelines.trainer import Cadence


class Play(Event, topic="plays", key="listener", time="at", id="play_id"):
    """A song was played."""

    play_id: str
    at: datetime
    listener: int
    song: str
    seconds: float
    level: str


class Listener(FeatureView, source=Play, entity="listener"):
    """Of every type."""

    plays = Count(windows=("1h", "24h"))
    heard = Sum("seconds", windows="24h")
    longest = Max(col("seconds").cast(pl.Int64), windows="24h")
    last = Last("song")
    seen = Last("at")
    songs = LastN("song", n=5)
    moments = Sequence("at", n=5)
    lengths = LastN("seconds", n=5)
    loud = col("plays_1h") > 3


def declare(*fields, **parts):
    return type(
        "NextSong", (Learner,), {"views": (Listener,), "inputs": InputSpec(*fields), "model": Logistic(), **parts}
    )


def test_one_view_may_stand_alone():
    learner = declare(Dense("n", "listener.plays_1h"), views=Listener)
    assert learner.views == (Listener,)
    assert list(learner.fingerprints()) == ["listener"]


def test_every_type_that_a_field_reads_is_taken():
    assert declare(
        Categorical("song"),
        Categorical("last", "listener.last"),
        Categorical("plays", "listener.plays_1h"),
        Categorical("loud", "listener.loud"),
        Categorical("known", "listener._found"),
        Bag("songs", "listener.songs", table="song"),
        Dense("heard", "listener.heard_24h"),
        Dense("longest", "listener.longest_24h"),
        Dense("age", "listener._age_s"),
        Match("again", candidate="song", column="listener.songs"),
        Match("same", candidate="listener.last", column="listener.songs"),
        Derived("d", lambda columns: columns["listener.plays_1h"], ("listener.plays_1h", "listener.moments")),
    )


FIELD = r"learner next_song · inputs · .*"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (
            Dense("x", "listener.songs"),
            r"Dense 'x': column 'listener.songs' is list\[text\]; it takes a number; read li",
        ),
        (Dense("x", "listener.last"), "Dense 'x': column 'listener.last' is text; it takes a number"),
        (Dense("x", "listener.seen"), "Dense 'x': .* is time; .*times with TimeSince"),
        (Bag("x", "listener.plays_1h"), "Bag 'x': column 'listener.plays_1h' is int; it takes a list of ints or texts"),
        (Bag("x", "listener.lengths"), r"Bag 'x': .* is list\[float\]"),
        (Bag("x", "listener.moments"), r"Bag 'x': .* is list\[time\]"),
        (
            Categorical("x", "listener.heard_24h"),
            "Categorical 'x': .* is float; it takes an int or a text; read numbers",
        ),
        (Categorical("x", "listener.songs"), r"Categorical 'x': .* is list\[text\]"),
        (Match("x", "song", "listener.last"), "Match 'x': column 'listener.last' is text; it takes a list"),
        (Match("x", "listener.songs", "listener.songs"), r"Match 'x': .* is list\[text\]; it takes an int or a text"),
        (Dense("x", "listener.plays_2h"), "Dense 'x': column 'listener.plays_2h': no such feature; did you mean 'list"),
        (Dense("x", "listner.plays_1h"), "no such feature; did you mean 'listener.plays_1h'"),
        (Derived("x", len, ("listener.nothing",)), "Derived 'x': column 'listener.nothing': no such feature"),
        (Dense("x", "plays_1h"), "Dense 'x': column 'plays_1h' has no view; did you mean 'listener.plays_1h'"),
    ],
)
def test_a_field_that_cannot_read_its_column_is_refused(field, words):
    with pytest.raises(DeclarationError, match=FIELD + words):
        declare(field)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"model": Logistic},
            r"learner next_song: model is the class Logistic; call it; write a model, such as DeepFM",
        ),
        ({"model": "DeepFM"}, "model is 'DeepFM'; write a model"),
        ({"inputs": InputSpec}, "inputs is the class InputSpec; call it"),
        ({"inputs": [Dense("x")]}, r"inputs is \[Dense.*; write an InputSpec"),
        ({"label": Label}, "label is the class Label; call it"),
        ({"label": "10m"}, "label is '10m'; write a Label"),
        ({"views": "listener"}, "views is 'listener'; write a tuple of views"),
        ({"views": (Play,)}, "is no view; name a class declared as"),
        ({"views": ("listener",)}, "'listener' is no view"),
        ({"tables": [TablePolicy()]}, "tables is .*; write a dict"),
        ({"tables": {"song": TablePolicy}}, "table 'song': .*TablePolicy.*; write a TablePolicy"),
    ],
)
def test_a_part_of_another_kind_is_refused(parts, words):
    with pytest.raises(DeclarationError, match=words):
        declare(Categorical("song"), **parts)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InputSpec("song"), r"inputs: 'song'; write fields, such as Categorical"),
        (lambda: InputSpec(Dense), "inputs: the class Dense; call it"),
        (lambda: InputSpec([Dense("x")]), "inputs: .*; write fields"),
        (lambda: InputSpec(Dense(5)), "inputs · Dense 5: name=5 is int; write a text"),
        (lambda: InputSpec(Bag("x", length="5")), "inputs · Bag 'x': length='5' is str; write a whole number"),
        (lambda: InputSpec(Dense("x", scale="2")), "inputs · Dense 'x': scale='2' is str; write a number"),
        (Dense, r"Dense: argument name is missing; write for example Dense\(\"item\"\)"),
        (lambda: Match("x"), "Match: argument candidate is missing; write for example Match"),
        (lambda: Bag("x", lenght=5), "Bag: no argument lenght=, did you mean length="),
        (lambda: Label(Play), r"Label: argument within is missing; write for example Label\(SomeEvent, \"10m\"\)"),
        (lambda: Label("Play", within="10m"), "label: event='Play' is no event class"),
        (lambda: Label(Play, within="soon"), "label of Play: 'soon' is no span"),
        (lambda: Label(Play, "10m", positive=True), "label of Play: positive=True; write an expression"),
        (lambda: Label(Play, "10m", positive=col("secs") > 5), "positive names 'secs'; event Play has play_id"),
        (lambda: Label(Play, "10m", positive=col("seconds")), "positive is Float64, not Boolean; write a comparison"),
        (lambda: Label(Play, "10m", positive=col("seconds").mean() > 5), "positive .* looks at other rows"),
    ],
)
def test_wrong_fields_and_labels_are_refused(make, words):
    with pytest.raises(DeclarationError, match=words):
        make()


def test_the_model_of_the_docs_is_taken():
    assert declare(Categorical("song"), model=DeepFM(dim=4, hidden=(8,)), label=Label(Play, "10m", candidate="song"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DeepFM(dim="8"), "DeepFM: dim='8' is str; write a whole number"),
        (lambda: DeepFM(dim=2.5), "DeepFM: dim=2.5 is float; write a whole number"),
        (lambda: DeepFM(hidden=64), r"DeepFM: hidden=64 is int; write whole numbers, as \(64, 32\)"),
        (lambda: DeepFM(dims=8), "DeepFM: no argument dims=, did you mean dim="),
        (lambda: Adam(lr=float("nan")), "Adam: lr=nan is not finite; write a number"),
        (lambda: Adagrad(lr=float("inf")), "Adagrad: lr=inf is not finite"),
        (lambda: Ftrl(alpha="0.1"), "Ftrl: alpha='0.1' is str; write a number"),
        (lambda: TablePolicy(expire_us="1h"), "TablePolicy: expire_us='1h' is str; write a whole number"),
        (lambda: TablePolicy(rows_max=float("inf")), "TablePolicy: rows_max=inf is not finite; write a whole number"),
        (lambda: TablePolicy(init_scale=-0.1), "init_scale must be at least 0"),
        (lambda: Cadence(rows_min="640"), "Cadence: rows_min='640' is str; write a whole number"),
        (lambda: Cadence(publish_s="2s"), "Cadence: publish_s='2s' is str; write a number"),
        (lambda: Cadence(publish_s=-1.0), "wait_s and publish_s must be at least 0"),
        (lambda: SharedBottom(losses=LogLoss()), "SharedBottom: losses=.*; write losses, as"),
        (lambda: SharedBottom(losses=(LogLoss, LogLoss)), "PerLabel: loss is the class LogLoss; call it"),
        (lambda: SharedBottom(rank_by=(float("nan"), 1)), "SharedBottom: rank_by=.* is not finite"),
        (lambda: Gate(window=0), "gate: window=0; write the number"),
        (lambda: Prequential(window=0), "prequential figures: window=0"),
        (lambda: InputSpec(Dense("x", scale=float("nan"))), "dense x: scale nan; write a finite number"),
        (lambda: InputSpec(Derived("x", None, ("y",))), "Derived 'x': function=None is NoneType; write a function"),
        (lambda: InputSpec(Derived("x", len, "yz")), "Derived 'x': columns='yz' is str; write names of columns"),
        (
            lambda: declare(Dense("x"), model=DeepFM(sparse="adam")),
            "model DeepFM: sparse is 'adam'; write an optimizer",
        ),
        (lambda: declare(Dense("x"), model=DeepFM(sparse=Adagrad)), "sparse is the class Adagrad; call it"),
        (lambda: OnlineLearner(Learner), "learner: Learner itself; give a class declared as"),
        (lambda: OnlineLearner(declare(Dense("x")), seed="a"), "seed='a'; write a whole number"),
        (lambda: OnlineLearner(declare(Dense("x")), threads=0), "threads=0; write a whole number"),
    ],
)
def test_settings_of_another_kind_are_refused_where_they_are_written(make, words):
    """They failed at the first step, or, as a NaN, made every weight NaN."""
    with pytest.raises(DeclarationError, match=words):
        make()


def test_whole_floats_and_numpy_numbers_are_numbers():
    policy = TablePolicy(expire_us=86_400e6, rows_max=np.int64(5))
    assert (policy.expire_us, policy.rows_max) == (86_400_000_000, 5)
    assert isinstance(policy.expire_us, int)
    assert Adam(lr=np.float32(0.5)).lr == 0.5
