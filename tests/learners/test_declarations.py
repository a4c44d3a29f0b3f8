"""Learners, inputs and labels are checked when they are declared; a message names place, what was found and the fix."""

from datetime import datetime

import polars as pl
import pytest

from headrace import Count, Event, FeatureView, Last, LastN, Max, Sequence, Sum, col
from headrace.errors import DeclarationError
from headrace.learners import (
    Bag,
    Categorical,
    DeepFM,
    Dense,
    Derived,
    InputSpec,
    Label,
    Learner,
    Logistic,
    Match,
    TablePolicy,
)


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
