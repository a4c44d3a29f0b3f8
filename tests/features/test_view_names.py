"""One name, one view: two of a name are refused where both are seen, and by the store where one is."""

import numpy as np
import pytest

from headrace import Count, FeatureView, LastN, OnlineStore, Sum, replay
from headrace.errors import DeclarationError, LayoutError
from headrace.features import plan_of, plans_of
from headrace.history.replay import Replay
from headrace.history.verify import verify, verify_all
from headrace.learners import Dense, InputSpec, Learner
from headrace.learners.models import Logistic
from headrace.pipelines import Materializer
from headrace.pipelines.backfill import backfill
from headrace.pipelines.shard import ShardSet
from tests.logs import capture_logs
from tests.meters import START_US, Reading, batches, log_frame

LOG = log_frame(600, meters=20)


def declare(module, qualname="Load", *, window="1h", name="load", **features):
    """A view as another module would declare it."""
    body = {"__module__": module, "__qualname__": qualname, "readings": Count(windows=window), **features}
    return type(qualname, (FeatureView,), body, source=Reading, entity="meter", name=name)


OURS = declare("features.ours")
CHANGED = declare("features.ours", window="10m")
THEIRS = declare("features.theirs", watts=Sum("watts", windows="1h"))


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=4) as opened:
        yield opened


def fill(store, view):
    shards = ShardSet(plan_of(view), store, range(store.shards))
    for batch in batches(LOG, 200):
        shards.apply(batch)
    shards.flush()


class Letters:
    def write(self, letters):
        """Kept nowhere."""

    def close(self):
        """Nothing to close."""


def test_two_views_of_one_name_are_refused_where_both_are_seen(store):
    """A flow, a backfill, a replay, verify, a learner: each names both classes and the fix."""
    both = (OURS, THEIRS)
    doors = [
        lambda views: Materializer(views, store),
        lambda views: backfill(views, None, store, dead_letters=Letters()),
        Replay,
        lambda views: replay(views, LOG, LOG.head(0)),
        lambda views: verify_all(views, LOG, store),
        lambda views: plans_of(views, "this test"),
        lambda views: type(
            "Both",
            (Learner,),
            {"views": views, "inputs": InputSpec(Dense("n", "load.readings_1h")), "model": Logistic()},
        ),
    ]
    for door in doors:
        with pytest.raises(
            DeclarationError, match=r"features\.ours:Load and features\.theirs:Load have one name, 'load'.*name="
        ):
            door(both)
    for door in doors[:-1]:
        with pytest.raises(DeclarationError, match="no views"):
            door(())
    for door in doors[1:]:
        with pytest.raises(DeclarationError, match=r"view load \(features\.ours:Load\) is given twice"):
            door((OURS, OURS))


def test_the_store_refuses_another_view_of_a_name_it_holds(store):
    """Whoever comes second: to write, to be activated, to read."""
    fill(store, OURS)
    words = r"view load: redis.* has records of features\.ours:Load .* features\.theirs:Load is another view"
    for door in (
        lambda: fill(store, THEIRS),
        lambda: Materializer([THEIRS], store),
        lambda: store.activate(plan_of(THEIRS)),
        lambda: store.read(THEIRS, [1]),
        lambda: verify(THEIRS, LOG, store),
    ):
        with pytest.raises(LayoutError, match=words + r".*headrace features adopt features\.theirs:Load"):
            door()
    assert store.active("load") == plan_of(OURS).fingerprint
    assert store.read(OURS, [3], START_US + 10**12)["_status"].to_list() == ["fresh"]


def test_a_changed_view_is_the_same_view(store):
    """Its new version is built beside the old one, as ever, and takes over when it is activated."""
    fill(store, OURS)
    with capture_logs() as logs:
        fill(store, CHANGED)
    assert [line["event"] for line in logs] == ["view_version_not_active"]
    with pytest.raises(LayoutError, match="the view was changed and its new version is not active") as caught:
        store.read(CHANGED, [1])
    assert f"headrace backfill {plan_of(CHANGED).declared_in} --events" in str(caught.value)
    store.activate(plan_of(CHANGED))
    assert store.active("load") == plan_of(CHANGED).fingerprint


@pytest.mark.parametrize(
    "twin",
    [
        declare("features.moved"),
        declare("features.ours", "Renamed"),
        declare("__main__"),
        declare("features.ours", half=Count(windows="1h")),
    ],
)
def test_a_view_whose_records_are_the_same_is_the_same_view(store, twin):
    """Moved, renamed, run as a script, reloaded, or with another feature of the same state."""
    fill(store, OURS)
    fill(store, twin)
    fill(store, OURS)
    assert store.read(twin, [3], START_US + 10**12)["_status"].to_list() == ["fresh"]


def test_a_view_that_moved_as_it_was_may_be_changed_there(store):
    """The store followed it; the old address is another view from then on."""
    fill(store, OURS)
    fill(store, declare("features.moved"))
    fill(store, declare("features.moved", window="10m"))
    with pytest.raises(LayoutError, match=r"records of features\.moved:Load"):
        fill(store, CHANGED)


def test_a_script_may_change_its_view(store):
    """A class of a file run as a script is known by its name; it does not take the name from the module."""
    fill(store, OURS)
    fill(store, declare("__main__", window="10m"))
    fill(store, CHANGED)
    with pytest.raises(LayoutError, match="another view"):
        fill(store, declare("__main__", "Other", window="10m"))


def test_a_view_that_moved_and_changed_at_once_is_adopted(store):
    fill(store, OURS)
    moved = declare("features.moved", window="10m")
    with pytest.raises(LayoutError, match="headrace features adopt"):
        fill(store, moved)
    assert store.adopt(plan_of(moved)) == "features.ours:Load"
    fill(store, moved)
    with pytest.raises(LayoutError, match=r"records of features\.moved:Load"):
        fill(store, CHANGED)


def test_a_store_of_before_owners_were_noted_goes_on(store):
    """The view whose records it has becomes the owner, whoever came first."""
    fill(store, OURS)
    store._link.client.delete(f"{store.namespace}:owners")
    fill(store, CHANGED)
    fill(store, OURS)
    with pytest.raises(LayoutError, match=r"records of features\.ours:Load"):
        fill(store, THEIRS)


def test_names_that_differ_do_not_meet(store):
    fill(store, OURS)
    fill(store, declare("features.theirs", name="their_load", recent=LastN("site", n=3)))
    assert np.isfinite(store.read(OURS, [3], START_US + 10**12)["_age_s"][0])
