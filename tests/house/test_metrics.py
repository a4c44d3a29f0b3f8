"""Metrics: every role answers them, the page lists each, and their names carry units."""

import importlib
import importlib.util
import re
import socket

import httpx
import prometheus_client
import pytest

from headrace.errors import PortBusyError
from headrace.telemetry import serve_metrics
from tests.house import commands

UNITS = ("seconds", "bytes", "rows", "ratio", "nats", "requests", "version")
WITHOUT_UNIT = {
    "headrace_requests_waiting",
    "headrace_resident_over_budget",
    "headrace_examples_waiting",
    "headrace_store_circuit_open",
    "headrace_view_state",
    "headrace_model_unpublished",
}


@pytest.fixture(scope="module")
def generate():
    import pathlib

    path = pathlib.Path(__file__).resolve().parents[2] / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_what_processes_export(repo, generate):
    """Both ways: every name of the registry is in the table, and every name of the table is registered."""
    table = set(re.findall(r"^\| `(\w+)` ", (repo / "docs" / "operations.md").read_text(), re.MULTILINE))
    declaring = [
        path.relative_to(repo).with_suffix("")
        for path in sorted((repo / "headrace").rglob("*.py"))
        if re.search(r'"headrace_\w+"', path.read_text())
    ]
    for path in declaring:
        importlib.import_module(".".join(path.parts))
    exported = {
        family.name + "_total" * (family.type == "counter")
        for family in prometheus_client.REGISTRY.collect()
        if family.name.startswith("headrace_")
    }
    assert exported == table == {metric.name for metric in generate.metrics()}


def test_names_carry_units(generate):
    """A counter ends in _total, everything else in its unit, and each has a text."""
    for metric in generate.metrics():
        assert metric.help
        assert metric.roles
        ending = "total" if metric.kind == "counter" else UNITS
        assert metric.name.endswith(ending) or metric.name in WITHOUT_UNIT, metric.name


def test_metrics_are_served_while_a_command_runs():
    with serve_metrics("127.0.0.1", 0) as port:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "# HELP headrace_stage_seconds Time of one piece of work" in page
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics")


def test_a_port_that_is_taken_is_one_error(repo):
    """The command ends before it does anything, with the port and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PortBusyError, match=rf"^metrics: 127.0.0.1:{port} cannot be used \(Address already in use\)"
        ):
            serve_metrics("127.0.0.1", port).__enter__()
        words = ("backfill", "no.such:View", "--events", "x")
        ran = commands.headrace(*words, cwd=repo, HEADRACE_METRICS_PORT=str(port))
    assert ran.code == 1
    assert ran.err.startswith(f"error: metrics: 127.0.0.1:{port} cannot be used")
    assert len(ran.err.splitlines()) == 1
    with pytest.raises(PortBusyError, match="metrics: no.such.host:1 cannot be used"):
        serve_metrics("no.such.host", 1).__enter__()
