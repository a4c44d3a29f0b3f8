"""The command line as a person uses it: real processes, data on stdout, words on stderr, exit codes."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pytest
from rich.table import Table

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace import col
from headrace.cli.console import stdout_console, way_to_services
from headrace.clock import wall_us
from headrace.errors import SourceError, StoreUnavailableError
from headrace.features import OnlineStore
from headrace.learners import ModelDirectory, OnlineLearner, Snapshot
from headrace.local import free_port
from headrace.pipelines import EventBatch, Materializer
from headrace.settings import Settings
from pipelines.demo import LOG, load
from schemas.retail import Engagement
from tests.features.test_expressions import Sale, Shop, sales
from tests.house import commands
from tests.house.commands import Ran
from tests.meters import Reading, SiteKind, log_frame
from tests.shelves import Shelf, Stream


def headrace(*arguments: str, cwd: Path = LOG.parent.parent, **environment: str) -> Ran:
    return commands.headrace(*arguments, cwd=cwd, **environment)


@pytest.fixture
def stored(redis_url):
    """A store with the records of the log's first 5,000 lines."""
    frame = load()[:5_000]
    with OnlineStore.open(redis_url) as store:
        materializer = Materializer([CustomerActivity, ItemActivity], store)
        materializer.apply(EventBatch(Engagement, "engagements/0", np.arange(5_000), 5_000, frame, None, wall_us()))
        materializer.flush()
    return redis_url


def test_get_prints_json(stored):
    """`headrace get` reads as of a moment; the answer is one JSON row a key."""
    done = headrace(
        *("get", "features.customer:CustomerActivity", "13085", "1", "--store", stored),
        *("--now", "2009-12-09T08:00:00", "--json"),
    )
    assert done.code == 0, done.err
    known, unknown = orjson.loads(done.out)
    lines = load()[:5_000].filter(col("customer_id") == 13085)
    assert known["customer_id"] == 13085
    assert known["bought_30d"] == lines.filter(col("action") == "purchase").height > 0
    assert known["recent"][0]
    assert known["_status"] == "fresh"
    assert unknown["_status"] == "missing"
    assert unknown["bought_30d"] == 0


def stored_of(redis_url, view, event, frame):
    with OnlineStore.open(redis_url) as store:
        materializer = Materializer([view], store)
        offsets = np.arange(frame.height)
        materializer.apply(EventBatch(event, "events/0", offsets, frame.height, frame, None, wall_us()))
        materializer.flush()
    return ("--store", redis_url, "--json")


def test_get_takes_fields_of_the_request(redis_url):
    """Typed as the view declares them; without any, the features made of them are null."""
    options = stored_of(redis_url, Shop, Sale, sales())
    get = ("get", "tests.features.test_expressions:Shop", "1", "2", "--now", "2026-01-01T02:00:00", *options)
    fields = ("--request", "price=7.0", "--request", "code=SEK")
    done = headrace(*get, *fields)
    assert done.code == 0, done.err
    assert [(row["is_dear"], row["is_home"], row["mean_24h"]) for row in orjson.loads(done.out)] == [
        (1, 1, 3.0),
        (0, 0, 4.0),
    ]
    assert [row["is_dear"] for row in orjson.loads(headrace(*get).out)] == [None, None]
    wrong = {
        ("--request", "price=much", "--request", "code=SEK"): "request field price 'much' is no Float64",
        ("--request", "price=7.0"): "request field code is missing; write code=value too",
        ("--request", "prize=7.0"): "request 'prize=7.0': write name=value, once each of price, code",
        (*fields, "--request", "code=EUR"): "request 'code=EUR': write name=value, once each",
    }
    for words, message in wrong.items():
        done = headrace(*get, *words)
        assert (done.code, done.out) == (1, "")
        assert message in done.err


def test_get_says_which_records_are_ahead_of_the_moment(redis_url):
    """Shop 1's newest event is at 1 o'clock, shop 2's later; the table and the JSON say so."""
    options = stored_of(redis_url, Shop, Sale, sales())
    for now, expected in {"01:00:00": ["ahead", "ahead"], "01:00:01": ["fresh", "ahead"]}.items():
        words = ("get", "tests.features.test_expressions:Shop", "1", "2", "--now", f"2026-01-01T{now}")
        assert [row["_status"] for row in orjson.loads(headrace(*words, *options).out)] == expected
        assert "ahead" in headrace(*words, *options[:-1]).out


def test_get_takes_composite_keys_whose_values_hold_a_comma(redis_url):
    """As a JSON array; with too many or too few values the message shows it."""
    frame = (
        log_frame(3)
        .drop("_partition", "_offset")
        .with_columns(site=pl.Series(["a,b", "c", '["d"']), kind=pl.lit("heat"))
    )
    options = stored_of(redis_url, SiteKind, Reading, frame)
    get = ("get", "tests.meters:SiteKind")
    done = headrace(*get, '["a,b", "heat"]', "c,heat", '["d",heat', *options)
    assert done.code == 0, done.err
    assert [row["readings_lifetime"] for row in orjson.loads(done.out)] == [1, 1, 1]
    done = headrace(*get, "a,b,heat", *options)
    assert """key 'a,b,heat': write site,kind, or ["<site>", "<kind>"] where a value holds a comma""" in done.err


def test_get_starts_without_heavy_packages(stored):
    """Reading a record loads neither torch nor Ray: it takes a fraction of a second."""
    program = (
        "import sys; from headrace.cli import app\n"
        "try: app()\n"
        "except SystemExit: print(*{'torch', 'ray', 'bytewax', 'confluent_kafka'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "get",
            "features.customer:CustomerActivity",
            "13085",
            "--store",
            stored,
            "--json",
        ],
        cwd=LOG.parent.parent,
        capture_output=True,
        text=True,
    )
    assert orjson.loads(done.stdout)
    assert done.stderr.split() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get", "features.customer:CustomerActivity", "abc"), "customer_id 'abc' is no Int64"),
        (("get", "features.customer:Nobody", "1"), "has no 'Nobody'"),
        (("get", "features.customer:Count", "1"), "class headrace.features.aggregations.sums:Count is no view; name a"),
        (("get", "features.customer:Engagement", "1"), "class schemas.retail:Engagement is no view"),
        (("features", "show", "features.customer:col"), "is no view"),
        (("get", "features.customer:CustomerActivity", "1", "--request", "a=1"), "request 'a=1': write name=value"),
        (("get", "features.nothing:Nobody", "1"), "no module 'features.nothing'"),
        (("get", "features.customer:CustomerActivity", "1", "--now", "noon"), "write ISO 8601"),
        (("run", "pipelines.nothing"), "no module 'pipelines.nothing'"),
    ],
)
def test_wrong_words_are_one_line(stored, arguments, message):
    """A mistake is one line on stderr that names it, exit code 1, no traceback."""
    done = headrace(*arguments, HEADRACE_REDIS_URL=stored)
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert done.out == ""


def test_redis_that_is_down_is_one_line():
    """The error names the address and what to check."""
    port = free_port()
    done = headrace("get", "features.customer:CustomerActivity", "1", "--store", f"redis://127.0.0.1:{port}")
    assert done.code == 1
    assert f"127.0.0.1:{port}" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_setting_that_does_not_fit_is_named():
    """A bad environment variable is named with its value."""
    done = headrace("features", "list", HEADRACE_SHARDS="many")
    assert done.code == 1
    assert "HEADRACE_SHARDS='many'" in done.err


@pytest.mark.parametrize(
    ("error", "named", "words"),
    [
        (StoreUnavailableError("Redis at redis://127.0.0.1:6379/0 failed"), {}, "; HEADRACE_REDIS_URL is not set: "),
        (SourceError("broker 127.0.0.1:9092 does not answer"), {}, "; HEADRACE_BROKERS is not set: "),
        (StoreUnavailableError("Redis at redis://127.0.0.1:6379/0 failed"), {"redis_url": "redis://other"}, ""),
        (StoreUnavailableError("Redis at redis://other failed"), {}, ""),
        (SourceError("broker 127.0.0.1:9092 has no topic 'plays'"), {}, ""),
    ],
)
def test_who_has_named_no_service_is_told_how_to_run_one(error, named, words):
    """And nobody else: `headrace up` is no answer to an address that was given."""
    said = way_to_services(error, Settings(**named))
    assert said.startswith(words)
    assert said.endswith("`headrace up`" * bool(words))
    assert bool(said) == bool(words)


def test_features_list_and_show():
    """Views are found in the project's folder and described."""
    views = orjson.loads(headrace("features", "list", "--json").out)
    assert [view["view"] for view in views] == ["features.customer:CustomerActivity", "features.item:ItemActivity"]
    shown = orjson.loads(headrace("features", "show", "features.item:ItemActivity", "--json").out)
    assert "item_activity.bought_7d" in [feature["feature"] for feature in shown]


def test_replay_writes_the_training_set(tmp_path):
    """`headrace replay` reads files and writes the spine with features."""
    frame = load()[:2_000]
    frame.write_parquet(tmp_path / "log.parquet")
    frame.select("item_id", "event_time")[::7].write_parquet(tmp_path / "spine.parquet")
    done = headrace(
        *("replay", "features.item:ItemActivity", "--events", str(tmp_path / "log.parquet")),
        *("--spine", str(tmp_path / "spine.parquet"), "--out", str(tmp_path / "out.parquet")),
    )
    assert done.code == 0, done.err
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.height == len(range(0, 2_000, 7))
    assert out["item_activity.bought_1d"].sum() > 0


def test_spine_without_the_entity_is_one_line(tmp_path):
    """The message names the view, the column and what there is."""
    frame = load()[:100]
    frame.write_parquet(tmp_path / "log.parquet")
    frame.select("country", "event_time").write_parquet(tmp_path / "spine.parquet")
    done = headrace(
        *("replay", "features.item:ItemActivity", "--events", str(tmp_path / "log.parquet")),
        *("--spine", str(tmp_path / "spine.parquet"), "--out", str(tmp_path / "out.parquet")),
    )
    assert done.code == 1
    assert "item_activity" in done.err
    assert "'item_id'" in done.err
    assert "country" in done.err


def test_doctor_names_what_is_missing_and_what_to_do(redis_url):
    """Doctor finds Redis, misses the broker, and says how to go on."""
    done = headrace("doctor", "--json", HEADRACE_REDIS_URL=redis_url, HEADRACE_BROKERS=f"127.0.0.1:{free_port()}")
    assert done.code == 0, done.err
    findings = {finding["name"]: finding for finding in orjson.loads(done.out)}
    assert findings["redis"]["state"] == "good"
    assert findings["broker"]["state"] == "note"
    assert "HEADRACE_BROKERS" in findings["broker"]["advice"]
    assert findings["packages"]["state"] == findings["disk"]["state"] == "good"


def test_health_of_a_silent_job_is_bad(redis_url):
    """A job that shows no status is not well."""
    done = headrace("health", "train", HEADRACE_REDIS_URL=redis_url)
    assert done.code == 1
    assert "train: shows no status" in done.err


def test_models_list_and_show_without_models(tmp_path):
    """No model yet is said, not shown as a traceback."""
    done = headrace("models", "show", HEADRACE_MODEL_DIR=str(tmp_path / "models"))
    assert done.code == 1
    assert "no model in" in done.err
    done = headrace("models", "show", "7", HEADRACE_MODEL_DIR=str(tmp_path / "models"))
    assert (done.code, done.out) == (1, "")
    assert f"no model 7 in {tmp_path}/models: it has none" in done.err
    assert orjson.loads(headrace("models", "list", "--json", HEADRACE_MODEL_DIR=str(tmp_path / "models")).out) == []


@pytest.fixture
def models(tmp_path):
    """Four published versions of one learner; `headrace` runs with their folder."""
    learner = OnlineLearner(Shelf)
    directory = ModelDirectory(tmp_path / "models", keep=30)
    for steps in range(4):
        directory.publish(Snapshot.of(learner, metrics={"rows": steps, "auc": float("nan")}))
        learner.learn(*Stream(steps).batch()[:2])
    return directory


def test_a_rollback_publishes_an_old_model_as_a_new_version(models):
    """Its content under the next number; nothing beyond what HEADRACE_MODELS_KEPT says is deleted."""
    environment = {"HEADRACE_MODEL_DIR": str(models.path)}
    done = headrace("models", "rollback", "2", "--json", **environment)
    assert (done.code, orjson.loads(done.out)) == (0, [{"version": 5, "content_of": 2}])
    assert "model 5 is 2 again" in done.err
    old, new = models.load(2), models.load(5)
    assert all((new.arrays[name] == array).all() for name, array in old.arrays.items())
    assert (new.manifest.parent, new.manifest.metrics["rows"]) == (4, 1)
    assert headrace("models", "rollback", "1", **environment).code == 0
    assert models.versions() == [1, 2, 3, 4, 5, 6]
    for word, error in (
        ("6", "model 6 in .* is the newest"),
        ("7", "no model 7 in .*: it has 1 to 6; see `headrace models list`"),
        ("0", "no model 0 in"),
        ("-1", "no model -1 in|No such option"),
        ("two", "Invalid value for 'version'"),
    ):
        done = headrace("models", "rollback", word, **environment)
        assert done.code != 0
        assert re.search(error, done.err), done.err
        assert "Traceback" not in done.err
    assert models.versions() == [1, 2, 3, 4, 5, 6]


def test_a_damaged_model_costs_itself_in_the_list_and_cannot_be_rolled_back_to(models):
    """The others are listed, also those without an AUC; the newest may be the damaged one."""
    environment = {"HEADRACE_MODEL_DIR": str(models.path)}
    (models.folder(4) / "manifest.json").write_bytes(b"{")
    path = models.folder(2) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    done = headrace("models", "list", "--json", **environment)
    assert done.code == 1
    assert [row["version"] for row in orjson.loads(done.out)] == [3, 2, 1]
    assert "v00000004 · manifest.json: unreadable" in done.err
    done = headrace("models", "rollback", "2", **environment)
    assert (done.code, models.latest()) == (1, 4)
    assert re.search("v00000002 · model.safetensors: .* bytes, manifest says", done.err)
    assert headrace("models", "rollback", "3", **environment).code == 0
    assert models.load(5).manifest.metrics["rows"] == 2


def test_a_file_that_is_not_there_is_reported_before_the_broker(repo):
    """`produce` waited half a minute for a broker that was away, and then named the broker only."""
    done = headrace("produce", "Engagement", "--from", "nowhere.parquet", cwd=repo, HEADRACE_BROKERS="127.0.0.1:1")
    assert (done.code, done.out) == (1, "")
    assert "nowhere.parquet does not exist" in done.err
    assert "127.0.0.1:1" not in done.err


def test_a_table_in_a_file_is_not_folded(monkeypatch, capsys):
    """Rich takes 80 columns where it finds no terminal, and broke headings such as rate_per_s; COLUMNS still counts."""
    table = Table(*(f"heading_{number:02}" for number in range(20)), box=None)
    for columns, width in ((None, 20 * 12 - 1), ("80", 80)):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", columns)
        stdout_console().print(table)
        [line] = capsys.readouterr().out.splitlines()
        assert len(line.rstrip()) in {width, width - 1}
