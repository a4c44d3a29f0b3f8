"""Versions of models and views: asked for, refused, swapped amid the work, replaced."""

import pytest

from headrace import Count, FeatureView
from headrace.errors import LayoutError, SnapshotError
from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.serving import build_http
from tests.serving import stage
from tests.serving.conftest import PATIENT, Client
from tests.serving.stage import ASK, Ranks, Signature, until


def test_a_refused_version_is_named_with_its_reason_until_a_newer_one_is_live(ranker):
    """In the model, the report, the readiness and the metrics; the live model goes on."""
    releases = stage.Published({3: Ranks()})
    swap = stage.swap_of(ranker, releases)
    swap.refresh()
    releases.models[4] = SnapshotError("table thing: 3 of 9 rows are not finite")
    assert not swap.refresh()
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK))
    seen = [
        client.get("/v1/model").json()["refused"],
        client.get("/readyz").json()["refused"],
        client.get("/v1/report").json()["swaps"]["last_refused"],
    ]
    for refused in seen:
        assert (refused["model_version"], "not finite" in refused["reason"]) == (4, True)
    assert client.get("/v1/model").json()["model_version"] == 3
    assert "headrace_model_refused_version 4.0" in client.get("/metrics").text
    releases.models[5] = Ranks()
    assert swap.refresh()
    assert client.get("/v1/model").json()["refused"] is None
    assert "refused" not in client.get("/readyz").json()


def test_requests_may_ask_for_a_version(ranker):
    """1..5 were live, 3 and 4 are kept: who asks for an older one, or for one to come, gets 409."""
    releases = stage.Published()
    swap = stage.swap_of(ranker, releases)
    for version in range(1, 6):
        releases.models[version] = Signature(version)
        assert swap.refresh()
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT))

    def answer(**wanted):
        return client.post("/v1/score", {**ASK, **wanted})

    for wanted, version in (
        ({}, 5),
        ({"exact_version": 3}, 3),
        ({"exact_version": 4, "min_version": 4}, 4),
        ({"exact_version": 5}, 5),
        ({"min_version": 5}, 5),
    ):
        body = answer(**wanted).json()
        assert (body["model_version"], body["scores"]) == (version, pytest.approx([version / stage.SIGN] * 4))
        assert (body["live_at_start"], body["live_at_end"]) == (5, 5)
    for wanted, field, retry_after in (
        ({"exact_version": 2}, "exact_version", None),
        ({"exact_version": 6}, "exact_version", "1"),
        ({"min_version": 6}, "min_version", "1"),
        ({"min_version": 4, "exact_version": 3}, "min_version", None),
    ):
        refused = answer(**wanted)
        assert (refused.status_code, refused.json()["error"], refused.json()["field"]) == (
            409,
            "version_not_live",
            field,
        )
        assert refused.headers.get("retry-after") == retry_after
    assert answer(exact_version=0).status_code == 422


def test_a_swap_amid_the_work_is_said(ranker):
    """2 becomes live while 1 scores: 1 answers, and the answer names both."""
    releases = stage.Published({1: Signature(1)})
    swap = stage.swap_of(ranker, releases)

    class Swapping(Signature):
        def score(self, inputs):
            if swap.live is not None and swap.live.version == 1:  # not in the warm-up
                releases.models[2] = Signature(2)
                assert swap.refresh()
            return super().score(inputs)

    releases.models[1] = Swapping(1)
    assert swap.refresh()
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT))
    body = client.post("/v1/score", ASK).json()
    assert (body["model_version"], body["live_at_start"], body["live_at_end"]) == (1, 1, 2)


def test_a_replaced_version_of_a_view_is_served_until_it_is_dropped(redis_url, serve):
    """
    v1 active | v2 activated: v1's records are served, and said to be replaced | v1 dropped: refused, and not ready
    """
    plan = plan_of(stage.ThingActivity)

    class Later(FeatureView, source=stage.Reading, entity="thing", name=plan.name):
        reads = Count(windows=("2h",))

    with OnlineStore.open(redis_url, shards=stage.SHARDS, reads_replaced=True) as store:
        stage.fill(store, stage.EVENTS)
        ranker = stage.warm_ranker(store)
        client = serve(Ranks(), on=ranker)
        before = client.post("/v1/score", ASK).json()
        store.views._set_owner(plan_of(Later))  # as a class that was changed in place
        store.activate(plan_of(Later))
        after = client.post("/v1/score", ASK).json()
        assert (after["scores"], after["views"]) == (before["scores"], before["views"])
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["replaced_views"]) == (200, [plan.name])
        assert f'headrace_view_state{{state="replaced",view="{plan.name}"}} 1.0' in client.get("/metrics").text
        with OnlineStore.open(redis_url, shards=stage.SHARDS) as strict, pytest.raises(LayoutError, match=plan.name):
            strict.read(stage.ThingActivity, ["a"])
        store.drop(plan.name, plan.version)
        until(lambda: client.post("/v1/score", ASK).status_code == 503)
        refused, ready = client.post("/v1/score", ASK), client.get("/readyz")
        assert (refused.json()["error"], ready.status_code) == ("layout_differs", 503)
        assert plan.name in ready.json()["problems"][0]
        assert "127.0.0.1" not in refused.text + ready.text
