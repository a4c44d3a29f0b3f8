"""Real services for the tests: one Redis and one broker a run, each on free ports in a temporary folder."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from headrace.local import EmbeddedBroker, EmbeddedRedis
from headrace.schemas import dead_letters
from headrace.streams.files import reading
from tests import logs, tiers
from tests.redis_cluster import RedisCluster

# one example may load compiled kernels, or wait for the other processes of a busy machine, and so may drawing some
hypothesis.settings.register_profile("headrace", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("headrace")


def pytest_configure(config: pytest.Config) -> None:
    """Know the tier before test modules are imported, whose counts depend on it."""
    tiers.is_fast = config.option.markexpr == tiers.FAST


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long tests, those marked slow or with a limit of their own: no process ends a run alone with one.

    pytest-randomly has put `items` into an order that is the same in all processes; that of the rest stays.
    """
    items.sort(key=lambda item: not any(map(item.get_closest_marker, ("slow", "timeout"))))


@pytest.fixture(autouse=True)
def _own_lines() -> Iterator[None]:
    """Let a test capture lines, and log what waits to be logged of its bad rows before the next looks at its own."""
    logs.install()
    yield
    dead_letters._log.flush()
    reading._left_out_log.flush()


@pytest.fixture(scope="session")
def _redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), aof=False) as server:  # tests that end one start their own
        yield server


@pytest.fixture
def redis_url(_redis: EmbeddedRedis) -> str:
    """URL of an empty, real Redis."""
    import redis

    with redis.Redis.from_url(_redis.url) as client:
        client.flushall()
    return _redis.url


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A real Redis Cluster of three masters."""
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(params=["server", "cluster"])
def store_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty, real Redis: one server, then a cluster."""
    if request.param == "server":
        return str(request.getfixturevalue("redis_url"))
    cluster: RedisCluster = request.getfixturevalue("redis_cluster")
    for index in range(len(cluster.ports)):
        with cluster.node(index) as client:
            client.flushall()
    return cluster.url


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a real broker; topics are the test's own (`topic` gives a fresh name)."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as server:
        yield server.bootstrap


@pytest.fixture
def topic() -> str:
    """A topic name that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def repo() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent
