"""Bad input to every command ends in one line that says what was found and what to write, never in a traceback."""

import orjson
import pytest

from headrace.local import free_port
from tests.house.commands import Ask, run
from tests.tiers import by_tier

VIEW = "features.v:V"
FLOW = """
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from features.v import V
from headrace.pipelines.on_bytewax import events_in, materialize
from headrace.pipelines.wiring import intake_of, kafka_source, open_store
from headrace.settings import load_settings
from schemas.ev import Ev
settings = load_settings()
flow = Dataflow("live")
events = op.input("events", flow, events_in(kafka_source(settings, (Ev,)), (Ev,), **intake_of(settings)))
materialize("views", events, [V], lambda: open_store(settings))
"""
FILES = {
    "pyproject.toml": "[tool.headrace]\n",
    "schemas/ev.py": (
        "from datetime import datetime\nfrom headrace import Event\n\n\n"
        'class Ev(Event, topic="ev", key="user", id="eid", codec="json"):\n'
        "    eid: str\n    event_time: datetime\n    user: int\n"
    ),
    "features/v.py": (
        "from headrace import Count, FeatureView\nfrom schemas.ev import Ev\n\n\n"
        'class V(FeatureView, source=Ev, entity="user"):\n    n = Count(windows="lifetime")\n'
    ),
    "features/times.py": (
        "from headrace import FeatureView, Last, Sequence\nfrom schemas.ev import Ev\n\n\n"
        'class Times(FeatureView, source=Ev, entity="user"):\n    last = Last("event_time")\n'
        '    steps = Sequence("eid", "event_time", n=2)\n'
    ),
    "pipelines/live.py": FLOW,
    "pipelines/raises.py": "\n1/0\n",
    "pipelines/exits.py": "import sys\nsys.exit(0)\n",
    "pipelines/broken.py": "def f(:\n",
    "pipelines/lacking.py": "import nowhere_at_all\n",
    "pipelines/no_flow.py": "x = 1\n",
    "pipelines/other_flow.py": "flow = 1\n",
    "pipelines/empty_flow.py": "from bytewax.dataflow import Dataflow\nflow = Dataflow('x')\n",
    "serving/other.py": "make_http = 3\n",
    "serving/wrong.py": "def make_http():\n    return 3\n",
    "log.jsonl": '{"eid": "a", "event_time": "2026-01-01T00:00:00Z", "user": 1}\n',
    "spine.csv": "user,event_time\n1,2026-01-01T00:00:00\n",
    "damaged.parquet": "PAR1 and nothing else",
    "empty.parquet": "",
    "list.json": "[1]",
    "huge.json": '{"ev/0": 99999999999999999999}',
    "truth.json": '{"ev/0": true}',
    "below.json": '{"ev/0": -5}',
    "gap.json": '{"ev/0": 5, "ev/2": 5}',
    "last.json": '{"ev/7": 5}',
    "zeros.json": '{"ev/00": 5}',
    "other.json": '{"clicks/0": 5}',
    "file.json": '{"ev/log.jsonl": 5}',
}
FOLDERS = ("schemas", "features", "pipelines", "learners", "serving", "outside", "damaged_env")


def write_project(folder):
    """Write FILES and the packages of FOLDERS; return the folder."""
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path)


def asks_of(redis_url, taken_port):
    """(words, environment, what the line says)"""
    nowhere = f"redis://127.0.0.1:{free_port()}"
    get = ("get", VIEW, "1")
    materialize = ("materialize", VIEW, "--store", redis_url, "--events")
    backfill = ("backfill", VIEW, "--store", redis_url, "--events", "log.jsonl")
    replay = ("replay", VIEW, "--events", "log.jsonl", "--spine")
    redis = {"HEADRACE_REDIS_URL": redis_url}
    return [
        (("get", "foo", "1"), {}, "write module:name"),
        (("get", "features.v:", "1"), {}, "write module:name"),
        (("get", "v", "1"), {}, "CustomerActivity; did you mean features.v:V?"),
        (("get", "features.w:V", "1"), {}, "features.customer; did you mean features.v?"),
        (("get", "features.v:EV", "1"), {}, "it has Count, Ev, FeatureView, V; did you mean Ev?"),
        (("get", "..:V", "1"), {}, "no module '..'"),
        (("get", "features.v:Nope", "1"), {}, "it has Count, Ev, FeatureView, V"),
        (("get", "os:path", "1"), {}, "is no view"),
        (("get", VIEW, "x", "--store", redis_url), {}, "user 'x' is no Int64"),
        (("get", VIEW, "1.5", "--store", redis_url), {}, "user '1.5' is no Int64"),
        (("get", VIEW, str(2**70), "--store", redis_url), {}, "is no Int64"),
        ((*get, "--now", "noon", "--store", redis_url), {}, "write ISO 8601"),
        ((*get, "--store", ""), {}, "this is no URL; write redis://"),
        ((*get, "--store", "foo"), {}, "this is no URL; write redis://"),
        ((*get, "--store", "redis://..."), {}, "is no host; write redis://"),
        ((*get, "--store", "redis://host:notaport"), {}, "its port is no number"),
        ((*get, "--store", "redis://:pw@host:6379/notadb"), {}, "no database number"),
        ((*get, "--store", "embedded://"), {}, "names no folder"),
        ((*get, "--store", "embedded:///dev/null/x"), {}, "/dev/null/x"),
        ((*get, "--store", nowhere), {}, "check that Redis runs there"),
        ((*get, "--store", nowhere.replace("redis:", "redis+cluster:")), {}, "check that Redis runs there"),
        ((*get, "--store", "unix:///nowhere.sock"), {}, "check that Redis runs there"),
        ((*get, "--store", redis_url.replace("/0", "/999")), {}, "use a smaller number in the URL"),
        (get, {"HEADRACE_REDIS_URL": "redis://..."}, "is no host"),
        (get, {**redis, "HEADRACE_SHARDS": "7", "HEADRACE_NAMESPACE": "seven"}, None),
        (get, {**redis, "HEADRACE_SHARDS": "8", "HEADRACE_NAMESPACE": "seven"}, "made with shards = 7, not 8"),
        (get, {**redis, "HEADRACE_NAMESPACE": "a:b"}, "HEADRACE_NAMESPACE='a:b'"),
        (get, {**redis, "HEADRACE_CLOCK": "noon"}, "HEADRACE_CLOCK: clock 'noon'"),
        (get, {**redis, "HEADRACE_CLOCK": "file:/nowhere/clock"}, "HEADRACE_CLOCK: clock file /nowhere/clock"),
        (("run", "pipelines.nothing"), {}, "no module 'pipelines.nothing'"),
        (("run", "pipelines/live.py"), {}, "write it as folder.file"),
        (("run", ""), {}, "write module:name"),
        (("run", "pipelines.raises"), {}, "raises.py:2: ZeroDivisionError: division by zero"),
        (("run", "pipelines.exits"), {}, "exits.py:2: SystemExit: 0"),
        (("run", "pipelines.broken"), {}, "broken.py:1: invalid syntax"),
        (("run", "pipelines.lacking"), {}, "lacking.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (("run", "pipelines.no_flow"), {}, "has no 'flow'"),
        (("run", "pipelines.other_flow"), {}, "flow is of type int"),
        (("run", "pipelines.empty_flow"), {}, "has no input made by `events_in`"),
        (("run", "pipelines.live"), {"HEADRACE_REDIS_URL": "foo"}, "this is no URL"),
        (
            ("run", "pipelines.live"),
            {**redis, "HEADRACE_KAFKA": '{"foo": "1"}'},
            'No such configuration property: "foo"',
        ),
        (("run", "pipelines.live"), {**redis, "HEADRACE_KAFKA": '{"linger.ms": "x"}'}, "(HEADRACE_KAFKA, config= in"),
        (
            ("run", "pipelines.live"),
            {**redis, "HEADRACE_KAFKA": '{"bootstrap.servers": "x"}'},
            "HEADRACE_BROKERS names",
        ),
        (("run", "pipelines.live"), {**redis, "HEADRACE_REGISTRY_URL": "foo"}, "HEADRACE_REGISTRY_URL 'foo'"),
        (("run", "pipelines.live"), {**redis, "HEADRACE_THREADS": "0"}, "HEADRACE_THREADS='0'"),
        (("serve", "serving.other", "--plain"), {}, "make_http is no function"),
        (("serve", "serving.wrong", "--plain"), {}, "make_http returns int, not an application"),
        (("serve", "--plain"), {}, "no module 'serving.app'"),
        (
            ("serve", "serving.wrong", "--plain"),
            {"HEADRACE_PORT": taken_port},
            "cannot be used (Address already in use)",
        ),
        (("serve", "serving.wrong", "--plain"), {"HEADRACE_HOST": "no.invalid"}, "no.invalid:8000 cannot be used"),
        (("serve", "serving.wrong", "--plain"), {"HEADRACE_API_KEYS": ""}, "HEADRACE_API_KEYS: set, but holds no key"),
        ((*materialize, "nowhere.jsonl"), {}, "file nowhere.jsonl does not exist"),
        ((*materialize, ""), {}, "write kafka://HOST:PORT, a file"),
        ((*materialize, "."), {}, ". is a folder; add a pattern"),
        ((*materialize, "*.nothing"), {}, "no file matches"),
        ((*materialize, "empty.parquet"), {}, "empty.parquet is empty"),
        ((*materialize, "damaged.parquet"), {}, "damaged.parquet cannot be read"),
        ((*materialize, "kafka:/h:1"), {}, "two slashes follow kafka:, as in kafka://HOST:PORT"),
        ((*materialize, "kafka://"), {}, "write kafka://HOST:PORT"),
        ((*materialize, "kafka://h:1/ev"), {}, "topics are the events' own"),
        ((*materialize, "kafka://h:1?start=noon"), {}, "start=noon: write earliest"),
        ((*materialize, f"kafka://h:1?start={10**20}"), {}, "write earliest"),
        ((*materialize, "https://127.0.0.1:1/x.parquet"), {}, "cannot be read: Cannot connect to host"),
        ((*materialize, "http://127.0.0.1:99999/x.parquet"), {}, "cannot be read"),
        ((*materialize, "http://[::1/x.parquet"), {}, "cannot be read: Invalid IPv6 URL"),
        ((*materialize, "foo://x"), {}, "Protocol not known: foo"),
        (("materialize", "schemas.ev:Ev", "--store", redis_url, "--events", "log.jsonl"), {}, "is no view"),
        (backfill, {}, "give --handover FILE"),
        ((*backfill, "--handover", "nowhere.json"), {}, "--handover nowhere.json: cannot be read (No such file"),
        ((*backfill, "--handover", "list.json"), {}, 'write a JSON object such as {"ev/0": 1200}'),
        ((*backfill, "--handover", "huge.json"), {}, "is no offset"),
        ((*backfill, "--handover", "truth.json"), {}, "True is no offset"),
        ((*backfill, "--handover", "below.json"), {}, "-5 is no offset"),
        (
            (*backfill, "--handover", "gap.json"),
            {},
            "ev/2 is named and ev/1 is not, which the live flow would read from",
        ),
        ((*backfill, "--handover", "last.json"), {}, "ev/7 is named and ev/0 is not"),
        ((*backfill, "--handover", "zeros.json"), {}, "'ev/00' is no partition of ev"),
        ((*backfill, "--handover", "other.json"), {}, "'clicks/0' is no partition of ev"),
        ((*backfill, "--handover", "file.json"), {}, "'ev/log.jsonl' is no partition of ev"),
        (("verify", VIEW, "--store", redis_url, "--events", "nowhere.jsonl"), {}, "file nowhere.jsonl does not exist"),
        ((*replay, "nowhere.csv", "--out", "o.parquet"), {}, "file nowhere.csv does not exist"),
        ((*replay, "spine.csv", "--out", "/proc/o.parquet"), {}, "/proc/o.parquet"),
        (("features", "drop", VIEW, "zz", "--store", redis_url), {}, "holds no version 'zz'"),
        (("features", "show", "x"), {}, "write module:name"),
        (("models", "list"), {"HEADRACE_MODEL_DIR": "/proc/models"}, "/proc/models"),
        (("models", "list"), {"HEADRACE_MODEL_DIR": "log.jsonl"}, "File exists: log.jsonl"),
        (("models", "show", "7"), {}, "no model 7 in .headrace/models: it has none"),
        (("schemas", "check"), {}, "write it with `headrace schemas lock`"),
        (("init", "."), {}, "exists and is not empty"),
        (("init", "/proc/x"), {}, "/proc/x"),
        (("demo",), {}, "no module 'pipelines.demo'"),
        (("health", "nobody"), redis, "nobody: shows no status"),
        (("health", "materialize"), {"HEADRACE_REDIS_URL": nowhere}, "check that Redis runs there"),
        (("health", "serve"), {"HEADRACE_PORT": "1"}, "http://127.0.0.1:1/readyz does not answer"),
        (("features", "list"), {"HEADRACE_PROJECT": "/proc"}, "is not inside a Headrace project"),
        (("features", "list"), {"HEADRACE_LOG_LEVEL": "loud"}, "HEADRACE_LOG_LEVEL='loud'"),
        (("features", "list"), {"HEADRACE_FUTURE_S": "inf"}, "HEADRACE_FUTURE_S='inf'"),
    ]


@pytest.mark.timeout(600)
def test_bad_input_is_one_line(project, redis_url):
    given = asks_of(redis_url, redis_url.rpartition(":")[2].split("/")[0])
    letters = {"HEADRACE_DEAD_LETTER_DIR": "letters", "HEADRACE_BROKERS": "127.0.0.1:1"}
    wrong = []
    for words, environment, message in given[:: by_tier(fast=3, whole=1)]:  # a command takes a quarter of a second
        ran = run(Ask(words, environment), project, **letters)
        if not (ran.code == 0 if message is None else is_one_line(ran, message)):
            wrong.append(f"{environment} {ran}")
    assert not wrong, "\n\n".join(wrong)
    assert len(given) > 80


def is_one_line(ran, message):
    lines = ran.err.splitlines()
    return (ran.code, ran.out, len(lines)) == (1, "", 1) and lines[0].startswith("error: ") and message in lines[0]


USAGE = (
    ("get",),
    ("get", VIEW),
    ("nothing",),
    ("run", "pipelines.live", "--workers", "0"),
    ("materialize", VIEW, "--events", "log.jsonl", "--memory-records", "0"),
    ("replay", VIEW, "--events", "log.jsonl", "--spine", "spine.csv", "--out", "o.parquet", "--checkpoint", "inf"),
    ("demo", "--speed", "nan"),
    ("demo", "--seconds", "inf"),
    ("demo", "--requests-per-s", "nan"),
)


def test_wrong_usage_says_how_to_call_it(project):
    for words in USAGE:
        ran = run(Ask(words), project)
        assert (ran.code, ran.out) == (2, ""), ran
        assert "Usage: headrace" in ran.err
        assert "Traceback" not in ran.err


def test_a_disk_that_is_full_from_some_file_on_is_one_line(project):
    """The project that is made new cannot be written whole."""
    ran = run(Ask(("init", str(project / "copy")), file_bytes_max=500), project)
    assert is_one_line(ran, "File too large"), ran


def test_words_that_are_no_mistake(project, redis_url):
    """Negative keys, a version, empty lists that say so, a misspelt setting that is warned of."""
    store = ("--store", redis_url)

    def command(*words, **environment):
        return run(Ask(words, environment), project)

    ran = command("get", VIEW, "-5", "7", "-6", *store, "--json")
    assert (ran.code, [record["user"] for record in orjson.loads(ran.out)]) == (0, [-5, 7, -6])
    ran = command("get", VIEW, "7", "--now", "-0001-01-01", *store)
    assert is_one_line(ran, "now='-0001-01-01' is no time")
    ran = command("--version")
    assert (ran.code, ran.out.split()[0], ran.err) == (0, "headrace", "")
    ran = command("models", "list")
    assert (ran.code, ran.out, ran.err.startswith("no models in ")) == (0, "", True)
    ran = command("features", "versions", VIEW, *store)
    assert (ran.code, ran.out, ran.err.startswith("no version of features.v:V in redis://")) == (0, "", True)
    ran = command("features", "list", "--json", HEADRACE_BROKER="x")
    assert ran.err == "warning: HEADRACE_BROKER is no setting and is ignored; did you mean HEADRACE_BROKERS?\n"
    assert orjson.loads(ran.out)[1] == {"view": VIEW, "entity": "user", "features": 1}


def test_times_are_iso_8601_and_ages_readable(project, redis_url):
    """In JSON and for people, also inside of lists."""
    store = ("--store", redis_url)
    ran = run(Ask(("materialize", "features.times:Times", "--events", "log.jsonl", *store)), project)
    assert ran.code == 0, ran
    get = ("get", "features.times:Times", "1", "--now", "2026-01-03T07:30:00", *store)
    [record] = orjson.loads(run(Ask((*get, "--json")), project).out)
    assert record == {
        "user": 1,
        "last": "2026-01-01T00:00:00Z",
        "steps_eid": ["a"],
        "steps_event_time": ["2026-01-01T00:00:00Z"],
        "_status": "fresh",
        "_age_s": 55 * 3_600 + 1_800,
    }
    shown = run(Ask(get), project).out
    assert "2026-01-01T00:00:00Z" in shown
    assert "2 d 7 h" in shown
