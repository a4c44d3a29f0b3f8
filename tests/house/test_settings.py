"""Every setting that does not fit is found at the start: its name, its value unless it is a secret, what is allowed."""

import math

import pytest

from headrace.errors import ConfigError
from headrace.kernels import threads
from headrace.pipelines.wiring import kafka_source
from headrace.settings import Settings, SettingsWarning, load_settings
from tests.turnstiles import Passage

NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if field.annotation in {float, int, int | None} and name != "threads"
]
SECRETS = [name for name, field in Settings.model_fields.items() if not field.repr]


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headrace.settings._WARNED", set())


@pytest.mark.parametrize("name", [*NUMBERS, "threads"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "-1", "1e300", "abc", "10**6"])
def test_numbers_have_bounds(name, value, monkeypatch):
    """An infinite span overflowed deep in a flow; none is taken."""
    variable = f"HEADRACE_{name.upper()}"
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"^{variable}=") as caught:
        load_settings()
    assert repr(value) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1000000", "10**6", "1.5"])
def test_threads_are_checked_where_they_are_read_too(value, monkeypatch):
    """A library user has no settings."""
    monkeypatch.setenv("HEADRACE_THREADS", value)
    with pytest.raises(ConfigError, match=r"^HEADRACE_THREADS='.*1024"):
        threads.thread_count.__wrapped__()


def test_threads_of_the_env_file_reach_the_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADRACE_THREADS", "")
    assert load_settings().threads is None
    monkeypatch.delenv("HEADRACE_THREADS")
    (tmp_path / ".env").write_text("HEADRACE_THREADS=3\n")
    monkeypatch.setenv("HEADRACE_THREADS", "3")  # so that monkeypatch restores what load_settings sets
    monkeypatch.delenv("HEADRACE_THREADS")
    assert load_settings().threads == 3
    assert threads.thread_count.__wrapped__() == 3


@pytest.mark.parametrize(
    ("text", "keys"),
    [("secret", ("secret",)), ("a,b", ("a", "b")), (" a , b ", ("a", "b")), ('["a", "b"]', ("a", "b")), ("[]", ())],
)
def test_api_keys_are_words_or_json(text, keys, monkeypatch):
    monkeypatch.setenv("HEADRACE_API_KEYS", text)
    assert load_settings().api_keys == keys


@pytest.mark.parametrize(
    ("text", "origins"),
    [("", ()), ("[]", ()), ("https://a.example, https://b.example", ("https://a.example", "https://b.example")),
     ('["https://a.example"]', ("https://a.example",))],
)  # fmt: skip
def test_origins_are_separated_by_commas_or_json(text, origins, monkeypatch):
    monkeypatch.setenv("HEADRACE_CORS_ORIGINS", text)
    assert load_settings().cors_origins == origins


@pytest.mark.parametrize("text", ["*", "null", "http://localhost:3000", "https://[::1]:8443", "capacitor://localhost"])
def test_origins_as_browsers_send_them(text, monkeypatch):
    monkeypatch.setenv("HEADRACE_CORS_ORIGINS", text)
    assert load_settings().cors_origins == (text,)


@pytest.mark.parametrize(
    "text",
    ["https://a.example/", "https://a.example/shop", "https://A.example", "a.example", "https://a.example:443",
     "http://a.example:80", "https://", "https://a.example https://b.example", "https://u:SECRET@a.example"],
)  # fmt: skip
def test_an_origin_that_would_match_no_page_is_refused(text, monkeypatch):
    """Before it is found out in a browser's console."""
    monkeypatch.setenv("HEADRACE_CORS_ORIGINS", text)
    with pytest.raises(
        ConfigError, match=r"^HEADRACE_CORS_ORIGINS.*no origin as browsers send it; write scheme://"
    ) as caught:
        load_settings()
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", " ", "a,,b", "a,", '[""]', '["TOPSECRET"', '"TOPSECRET"', "[1]", "TOP SECRET", "é"]
)
def test_no_key_or_half_a_key_is_refused_and_not_shown(text, monkeypatch):
    """An empty variable must not open the door: whoever sets it means to close it."""
    monkeypatch.setenv("HEADRACE_API_KEYS", text)
    with pytest.raises(ConfigError, match="^HEADRACE_API_KEYS.*not shown") as caught:
        load_settings()
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("name", SECRETS)
def test_the_value_of_a_secret_setting_is_never_shown(name, monkeypatch):
    for value in ("{TOPSECRET", '{"TOPSECRET": {"a": "TOPSECRET"}}', "", '["TOPSECRET", 1]'):
        monkeypatch.setenv(f"HEADRACE_{name.upper()}", value)
        settings, error = attempt(load_settings)
        assert "TOPSECRET" not in repr(settings)
        if error is not None:
            assert str(error).startswith(f"HEADRACE_{name.upper()}")
            assert "TOPSECRET" not in str(error).replace("HEADRACE_KAFKA['TOPSECRET']", "")  # an option's name
            assert error.__cause__ is error.__context__ is None


def attempt(call):
    try:
        return call(), None
    except ConfigError as exc:
        return None, exc


def test_numbers_and_truth_values_are_kafka_options(monkeypatch):
    monkeypatch.setenv("HEADRACE_KAFKA", '{"linger.ms": 5, "enable.ssl.certificate.verification": false}')
    assert load_settings().kafka == {"linger.ms": "5", "enable.ssl.certificate.verification": "false"}


def test_brokers_take_no_password(monkeypatch):
    monkeypatch.setenv("HEADRACE_BROKERS", "me:TOPSECRET@host:9092")
    with pytest.raises(ConfigError, match="^HEADRACE_BROKERS.*not shown") as caught:
        load_settings()
    assert "TOPSECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("HEADRACE_BROKER", "HEADRACE_BROKERS"),
        ("HEADRACE_REDIS", "HEADRACE_REDIS_URL"),
        ("headrace_prot", "HEADRACE_PORT"),
    ],
)
def test_a_misspelt_variable_is_warned_of_once(name, nearest, monkeypatch, recwarn):
    """It would have no effect, and nobody would know."""
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HEADRACE_PROJECT", "x")
    with pytest.warns(SettingsWarning, match=f"^{name} is no setting and is ignored; did you mean {nearest}"):
        load_settings()
    load_settings()
    assert len(recwarn) == 0


def test_the_env_file_is_looked_at_too(tmp_path):
    (tmp_path / ".env").write_text("HEADRACE_BROKER=x\nOTHER=y\n")
    with pytest.warns(SettingsWarning, match="HEADRACE_BROKER is no setting"):
        load_settings()
    (tmp_path / ".env").write_bytes(b"HEADRACE_BROKERS=\xff\n")
    with pytest.raises(ConfigError, match=r"^\.env cannot be read"):
        load_settings()


def test_the_env_file_is_that_of_the_project(tmp_path, monkeypatch):
    """A command may be given in any folder of the project."""
    (tmp_path / "pyproject.toml").write_text("[tool.headrace]\n")
    (tmp_path / ".env").write_text("HEADRACE_BROKERS=far:9092\n")
    (tmp_path / "features" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "features" / "deep")
    assert load_settings().brokers == "far:9092"
    monkeypatch.chdir("/")
    monkeypatch.setenv("HEADRACE_PROJECT", str(tmp_path))
    assert load_settings().brokers == "far:9092"


@pytest.mark.parametrize(
    "clock",
    [
        "fixed:1e5",
        f"fixed:{10**30}",
        "accelerated:1:2:inf",
        "accelerated:1:2:nan",
        "accelerated:1:2:0",
        "accelerated:1:2:-3",
    ],
)
def test_a_clock_that_cannot_run_names_its_variable(clock, monkeypatch):
    monkeypatch.setenv("HEADRACE_CLOCK", clock)
    with pytest.raises(ConfigError, match=r"^HEADRACE_CLOCK: clock '"):
        load_settings().event_clock  # noqa: B018


def test_every_number_has_a_finite_default():
    assert all(math.isfinite(getattr(Settings(), name) or 0) for name in NUMBERS)
    assert len(NUMBERS) > 10


def test_dead_letters_do_not_go_to_a_topic_that_the_flow_reads(monkeypatch):
    """A letter is no event: it would make another letter, without end."""
    monkeypatch.setenv("HEADRACE_DEAD_LETTER_TOPIC", "passages")
    with pytest.raises(ConfigError, match=r"^HEADRACE_DEAD_LETTER_TOPIC='passages' is the topic of event Passage"):
        kafka_source(load_settings(), [Passage])
