"""The pictures of docs/images are drawn from what the code is: files, rooms, and the way of a replay."""

import importlib.util
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headrace import FeatureView, Sum, col, replay
from tests.house.test_imports import ROOMS
from tests.rides import Ride

ENGINE = Path(__file__).resolve().parents[2] / "headrace"


@pytest.fixture
def draw(repo):
    spec = importlib.util.spec_from_file_location("draw", repo / "docs" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_fresh(repo, draw):
    """`make pictures` has been run since what is drawn changed, and a page shows each picture of docs/images."""
    for name, picture in draw.PICTURES.items():
        assert (repo / "docs" / "images" / name).read_text() == picture()
    pages = "".join(page.read_text() for page in (repo / "README.md", *(repo / "docs").glob("*.md")))
    assert [path.name for path in (repo / "docs" / "images").iterdir() if f"images/{path.name})" not in pages] == []


def test_files_on_the_ways_exist(draw):
    """Each way names files of the engine, none twice."""
    for way, steps in draw.WAYS.items():
        files = [file for file, _ in steps]
        assert [file for file in files if not (ENGINE / file).is_file()] == [], way
        assert len(set(files)) == len(files)


def test_layers_are_the_rooms(draw):
    """Every room is drawn once, to the right of all that it imports."""
    drawn = {room: number for number, layer in enumerate(draw.LAYERS) for room in layer}
    folders = {path.parent.name for path in ENGINE.glob("*/__init__.py") if path.parent.name != "_project"}
    assert {*drawn, *draw.LEAF} == folders
    for room, imported in ROOMS.items():
        assert all(drawn[other] < drawn[room] for other in imported - set(draw.LEAF)), room


class Distances(FeatureView, source=Ride, entity="rider"):
    """A view whose reads pass every file that a replay is drawn with."""

    total = Sum("fare", windows=("1h",))
    doubled_1h = col("total_1h") * 2


def test_a_replay_passes_its_files(draw):
    """A trace of a small replay enters each file of its column."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    ride = {"ride_id": "r", "at": at, "rider": 7, "line": "1", "stops": 2, "fare": 2.5, "zone": None, "kind": "pass"}
    entered = set()

    def note(frame, kind, _argument):
        if kind == "call":
            entered.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        rows = replay(Distances, [ride], [{"rider": 7, "event_time": at + timedelta(minutes=5)}])
    finally:
        sys.setprofile(None)
    assert rows["distances.doubled_1h"].to_list() == [5.0]
    assert [file for file, _ in draw.WAYS["a replay"] if str(ENGINE / file) not in entered] == []
