"""Values of a request's context that the model or the impression cannot take: the client's fault, by name."""

import json

import pytest

from headrace.learners import Categorical, DeepFM, Dense, InputSpec, Learner
from headrace.serving import ImpressionLog, Ranker, RankingSpec, build_http
from tests.serving import stage
from tests.serving.conftest import PATIENT, Client


class Offered(Learner):
    """What a reader reads at a price, on a device."""

    views = (stage.ThingActivity,)
    inputs = InputSpec(
        Categorical("thing"),
        Categorical("device"),
        Dense("price"),
        Dense("popularity", "thing_activity.reads_1h"),
    )
    model = DeepFM(dim=4, hidden=(8,))


class Sum:
    """A model that adds its numbers; one that is missing counts 0."""

    def score(self, inputs):
        return inputs.dense.sum(axis=1, where=inputs.dense == inputs.dense).astype("float32")


@pytest.fixture(scope="module")
def impressions():
    log = ImpressionLog(stage.Shown, "127.0.0.1:1", config={"log_level": 0, "message.timeout.ms": 100})
    yield log
    log.close()


@pytest.fixture
def client(store, impressions):
    ranker = Ranker(RankingSpec(Offered, ("reader",), "thing"), store)
    ranker.warm()
    swap = stage.swap_of(ranker, stage.Published({1: Sum()}, Offered.fingerprints()))
    swap.refresh()
    return Client(build_http(ranker, swap, impressions=impressions, clock=stage.CLOCK, limits=PATIENT))


def asked(client, **values):
    """The answer to a request whose context has these texts of JSON."""
    context = {"device": '"ios"', "price": "1.5", "page": "1", **values}
    fields = ", ".join(f"{json.dumps(name)}: {value}" for name, value in context.items())
    body = f'"entity": {{"reader": 7}}, "candidates": ["a", "b"], "context": {{{fields}}}'
    return client("POST", "/v1/rank", content=f"{{{body}}}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("price", value) for value in ("NaN", "Infinity", "-Infinity", "1e999", '"x"')),
        *(("device", value) for value in ("1.5", "NaN", str(10**30), str(2**63))),
        *(("page", value) for value in (str(10**30), str(2**63), str(-(2**63) - 1), "1.5", '"1"', "true", "NaN")),
        ("unread", "NaN"),
    ],
)
def test_a_value_that_cannot_be_used_is_a_422(client, name, value):
    """Of a number, an id, a column of the impression, and of what nobody reads; the service is not at fault."""
    refused = asked(client, **{name: value})
    assert (refused.status_code, refused.json()["error"]) == (422, "invalid_request")
    assert name in refused.json()["detail"]
    assert refused.json()["field"].startswith("context")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("price", value) for value in ("0", "-1e300", str(2**63 - 1), "null", "true", '"1.5"')),
        *(("device", value) for value in ("1", '"\\u0000"', "null", str(-(2**63)))),
        *(("page", value) for value in ("null", "0", str(2**63 - 1))),
    ],
)
def test_other_values_are_answered(client, name, value):
    """Numbers of any size that a float holds, ids of 64 bits, null."""
    assert asked(client, **{name: value}).status_code == 200
