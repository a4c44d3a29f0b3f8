"""No command and no class shows a secret of its URLs and settings: not on stdout, not on stderr, in no traceback."""

import functools
import http.server
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from headrace.errors import HeadraceError
from headrace.features import OnlineStore
from headrace.learners import ModelDirectory
from headrace.pipelines import KafkaDeadLetters, KafkaSource, TopicWriter, create_topics
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.streams.files.finder import find_files
from headrace.streams.kafka.client import connected
from headrace.streams.urls import source_of_url
from headrace.telemetry import StatusBoard
from tests.house.commands import Ask, run
from tests.house.test_bad_input import VIEW, write_project
from tests.meters import Reading
from tests.tiers import by_tier

SECRET = "TOPSECRET42"
PASSWORDS = (
    SECRET,
    f"{SECRET}/x",
    f"{SECRET}#x",
    f"{SECRET}?x",
    f"{SECRET}@x",
    f"{SECRET}%zz",
    f"x/{SECRET}",
    f"x@{SECRET}",
)
STORES = (
    *(f"redis://:{password}@127.0.0.1:1/0" for password in PASSWORDS),
    f"redis://me:{SECRET}@127.0.0.1:1/0",
    f"redis://{SECRET}@127.0.0.1:1/0",
    f"redis://127.0.0.1:{SECRET}/0",
    f"redis://127.0.0.1:1/0?password={SECRET}",
    f"redis://127.0.0.1:1/0?username={SECRET}&password={SECRET}",
    f"redis://127.0.0.1:1/0?foo={SECRET}",
    f"redis+cluster://:{SECRET}@127.0.0.1:1",
    f"rediss://:{SECRET}@127.0.0.1:1/0?ssl_password={SECRET}",
    f"unix:///nowhere.sock?password={SECRET}",
    f"me:{SECRET}@127.0.0.1:1",
    f"redis//:{SECRET}@127.0.0.1:1",
    f"http://me:{SECRET}@127.0.0.1:1",
)
EVENTS = (
    *(f"https://me:{password}@127.0.0.1:1/x.parquet" for password in PASSWORDS),
    f"https://127.0.0.1:1/x.parquet?sig={SECRET}",
    f"https://127.0.0.1:1/*.parquet?X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}",
    f"https://127.0.0.1:{SECRET}/x.parquet",
    f"http://me:{SECRET}@[::1/x.parquet",
    f"Ev=https://me:{SECRET}@127.0.0.1:1/x.parquet",
    f"https:/me:{SECRET}@127.0.0.1:1/x.parquet",
    f"s3://KEY:{SECRET}@bucket/x.parquet?endpoint_override=127.0.0.1:1",
    f"s3://bucket/x.parquet?access_key=KEY&secret_key={SECRET}&endpoint_override=127.0.0.1:1",
    f"ftp://me:{SECRET}@127.0.0.1:1/x.parquet",
    f"foo://me:{SECRET}@127.0.0.1:1/x.parquet",
    f"kafka://me:{SECRET}@127.0.0.1:1",
    f"kafka://127.0.0.1:1?sasl.password={SECRET}",
)
REGISTRIES = (
    *(f"http://me:{password}@127.0.0.1:1" for password in PASSWORDS[1:4]),
    f"http://127.0.0.1:{SECRET}",
    f"foo://me:{SECRET}@127.0.0.1",
    f"me:{SECRET}@127.0.0.1",
)
KAFKAS = (
    f'{{"sasl.password": "{SECRET}", "sasl.username": "{SECRET}", "foo": "1"}}',
    f'{{"sasl.password": "{SECRET}", "security.protocol": "{SECRET}"}}',
    f'{{"sasl.password": ["{SECRET}"]}}',
    f'{{"sasl.password": "{SECRET}"',
    f'{{"ssl.key.pem": "{SECRET}", "security.protocol": "ssl"}}',
)


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path)


def commands_of(store):
    """Every command that takes a store or a broker, each with one of the ways to say where."""
    told = {"HEADRACE_REDIS_URL": store}
    events = ("--events", "log.jsonl")
    return [
        Ask(("get", VIEW, "1", "--store", store)),
        Ask(("materialize", VIEW, *events, "--store", store)),
        Ask(("backfill", VIEW, *events, "--no-handover"), told),
        Ask(("verify", VIEW, *events), told),
        Ask(("features", "versions", VIEW, "--store", store)),
        Ask(("features", "drop", VIEW, "0", "--store", store)),
        Ask(("run", "pipelines.live"), told),
        Ask(("health", "materialize"), told),
        Ask(("doctor", "--json"), told),
    ]


@pytest.mark.timeout(600)
def test_no_command_shows_one(project, redis_url):
    """One store URL with each command, each with one of them; likewise URLs of files, registries and brokers."""
    asks = commands_of(STORES[1]) + [commands_of(store)[index % 9] for index, store in enumerate(STORES)]
    for url in EVENTS:
        asks.append(Ask(("materialize", VIEW, "--events", url, "--store", redis_url)))
    for url in EVENTS[1::4]:
        asks.append(Ask(("replay", VIEW, "--events", "log.jsonl", "--spine", url, "--out", "o.parquet")))
        asks.append(Ask(("backfill", VIEW, "--events", url, "--store", redis_url, "--no-handover")))
    for url in REGISTRIES:
        asks.append(Ask(("run", "pipelines.live"), {"HEADRACE_REGISTRY_URL": url, "HEADRACE_REDIS_URL": redis_url}))
    for options in KAFKAS:
        asks.append(Ask(("run", "pipelines.live"), {"HEADRACE_KAFKA": options, "HEADRACE_REDIS_URL": redis_url}))
        asks.append(Ask(("doctor",), {"HEADRACE_KAFKA": options, "HEADRACE_REDIS_URL": redis_url}))
    asks += [
        Ask(("features", "list"), {"HEADRACE_BROKERS": f"me:{SECRET}@127.0.0.1:1"}),
        Ask(("features", "list"), {"HEADRACE_API_KEYS": f'["{SECRET}", 1]'}),
        Ask(("serve", "serving.wrong", "--plain"), {"HEADRACE_API_KEYS": f'["{SECRET}"'}),
    ]
    settings = {"HEADRACE_BROKERS": "127.0.0.1:1", "HEADRACE_LOG_LEVEL": "debug", "HEADRACE_DEAD_LETTER_DIR": "letters"}
    asks = asks[:: by_tier(fast=4, whole=1)]  # a command takes half a second, or waits
    shown = []
    with ThreadPoolExecutor(4) as pool:  # some wait seconds for a host that does not answer
        runs = list(pool.map(lambda ask: run(ask, project, **settings), asks))
    for ask, ran in zip(asks, runs, strict=True):
        if SECRET in ran.out + ran.err or "Traceback" in ran.err or ran.code not in {0, 1}:
            shown.append(f"{ask.environment} {ran}")
    assert not shown, "\n\n".join(shown)


@pytest.mark.parametrize(
    "call",
    [
        *(functools.partial(OnlineStore.open, url) for url in STORES),
        *(functools.partial(lambda url: StatusBoard(url).read(), url) for url in STORES),
        *(functools.partial(ModelDirectory, "never-made", url) for url in STORES[1:4]),
        *(functools.partial(find_files, url) for url in EVENTS[:-2]),
        *(functools.partial(lambda url: source_of_url(url, [Reading]).partitions(), url) for url in EVENTS),
        *(functools.partial(SchemaRegistry, url) for url in REGISTRIES),
        functools.partial(KafkaSource(f"me:{SECRET}@h:1", ["t"]).partitions),
        functools.partial(KafkaSource("h:1", ["t"], config={"sasl.password": SECRET, "foo": SECRET[:3]}).partitions),
        functools.partial(TopicWriter, f"me:{SECRET}@h:1", Reading),
        functools.partial(KafkaDeadLetters, "h:1", config={"sasl.password": SECRET, "security.protocol": SECRET}),
        functools.partial(create_topics, f"me:{SECRET}@h:1", {"t": 1}),
        functools.partial(connected, dict, f"me:{SECRET}@h:1", {}),
    ],
)
def test_no_class_shows_one(call, capfd):
    """Nor do causes and contexts of the error, which a traceback prints."""
    with pytest.raises(HeadraceError) as caught:
        call()
    lines = "".join(traceback.format_exception(caught.value)).splitlines()
    shown = [
        line for line in lines if SECRET in line and not line.startswith("    ")
    ]  # source lines are the test's own
    assert not shown
    assert SECRET not in "".join(capfd.readouterr())


class Refusing(http.server.BaseHTTPRequestHandler):
    """A server of files that answers by the path: 401, 500, or something else than Parquet."""

    def do_GET(self):
        status = {"/denied.parquet": 401, "/broken.parquet": 500, "/gone.parquet": 404}.get(
            self.path.partition("?")[0], 200
        )
        self.send_response(status)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello"[: 5 * (self.command == "GET")])

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_a_server_of_files_that_refuses_is_named_without_the_password(project, redis_url):
    """The libraries' own errors quote the whole URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        for name in ("denied", "broken", "gone", "other"):
            url = f"http://me:{SECRET}@{place}/{name}.parquet?token={SECRET}"
            ran = run(Ask(("materialize", VIEW, "--events", url, "--store", redis_url)), project)
            assert ran.code == 1
            assert f"http://me:***@{place}/{name}.parquet?token=***" in ran.err
            assert SECRET not in ran.out + ran.err
        server.shutdown()
