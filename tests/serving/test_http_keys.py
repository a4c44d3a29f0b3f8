"""API keys: who may ask what, how often, and how they are configured."""

import hashlib
import os
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from headrace.errors import ConfigError
from headrace.serving import HttpLimits, api_keys
from headrace.serving.api_keys import ApiKeys, keys_of_file
from tests.logs import capture_logs
from tests.serving.stage import ASK, Ranks, until


def test_api_keys_guard_all_but_the_probes(serve):
    """401 without a known key; X-API-Key and Bearer both do."""
    client = serve(Ranks(), limits=HttpLimits(api_keys=("one", "two"), timeout_s=30.0))
    for path in ("/v1/model", "/v1/report", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 401
    refused = client.post("/v1/rank", ASK, headers={"x-api-key": "three"})
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
    assert client.post("/v1/rank", ASK, headers={"x-api-key": "two"}).status_code == 200
    assert client.post("/v1/rank", ASK, headers={"authorization": "Bearer one"}).status_code == 200
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_key_has_an_id_a_limit_and_scopes(serve, monkeypatch):
    """By its hash; beyond the limit 429, outside the scope 403; no key that is empty opens anything."""
    monkeypatch.setattr(api_keys, "time", SimpleNamespace(monotonic=lambda: 100.0))  # no limit fills up meanwhile
    digest = hashlib.sha256(b"secret").hexdigest()
    keys = (f"app:{digest}:2:rank", f"ops:{hashlib.sha256(b'other').hexdigest()}::operate+features")
    client = serve(Ranks(), limits=HttpLimits(api_keys=keys, timeout_s=30.0))
    app, ops = {"x-api-key": "secret"}, {"authorization": "Bearer other"}
    assert client.post("/v1/rank", ASK, headers={"x-api-key": digest}).status_code == 401
    for empty in ({"x-api-key": ""}, {"authorization": "Bearer "}, {}):
        assert client.post("/v1/rank", ASK, headers=empty).status_code == 401
    forbidden = client.get("/v1/model", headers=app)
    assert (forbidden.status_code, forbidden.json()["error"]) == (403, "forbidden")
    assert "operate" in forbidden.json()["detail"]
    assert client.get("/v1/model", headers=ops).status_code == 200
    assert client.get("/v1/features/reader_activity/7", headers=ops).status_code == 200
    assert client.post("/v1/score", ASK, headers=ops).status_code == 403
    burst = [client.post("/v1/score", {}, headers=app) for _ in range(8)]
    limited = [answer for answer in burst if answer.status_code == 429]
    assert len(limited) >= 2
    assert limited[0].headers["retry-after"] == "1"
    assert "app" in limited[0].json()["detail"]
    assert 'headrace_key_requests_total{key="app",outcome="limited"}' in client.get("/metrics", headers=ops).text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("",), "API key 1 is empty"),
        (("app:abc",), "API key 1 .not shown. is of another form"),
        ((f"app:{'0' * 64}:5:everything",), "no scope 'everything'; there are rank, features, operate"),
        ((f"app:{'0' * 64}:0",), "lets none through"),
        ((f"app:{'0' * 64}", f"app:{'1' * 64}"), "app: configured twice"),
    ],
)
def test_keys_of_another_form_are_refused_at_the_start(serve, keys, says):
    with pytest.raises(ConfigError, match=says):
        serve(Ranks(), limits=HttpLimits(api_keys=keys))


def test_keys_of_a_file(tmp_path):
    """One a line; a file without any must not open the service."""
    path = tmp_path / "keys"
    path.write_text(f"# keys\n\napp:{'0' * 64}\n")
    assert list(keys_of_file(path)) == [f"app:{'0' * 64}"]
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        keys_of_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        keys_of_file(tmp_path / "nowhere")


def test_a_changed_file_of_keys_is_read_again(serve, tmp_path):
    """A key is withdrawn and another added without a restart; a file that is faulty or empty changes nothing."""
    file = tmp_path / "keys"
    old, new = ({"x-api-key": key} for key in ("old", "new"))
    write = lambda *keys: file.write_text("".join(f"{k}:{hashlib.sha256(k.encode()).hexdigest()}\n" for k in keys))  # noqa: E731
    write("old")
    client = serve(Ranks(), limits=HttpLimits(timeout_s=30, api_keys_file=file))
    status = lambda headers: client.post("/v1/rank", ASK, headers=headers).status_code  # noqa: E731
    assert (status(old), status(new)) == (200, 401)
    write("old", "new")
    until(lambda: status(new) == 200)
    assert status(old) == 200
    write("new")
    until(lambda: status(old) == 401)
    not_read = lambda: REGISTRY.get_sample_value("headrace_api_keys_not_read_total")  # noqa: E731
    before = not_read()
    with capture_logs() as lines:
        for faulty in ("", "id:nonsense"):
            file.write_text(faulty)
            count = len(lines)
            until(lambda count=count: status(new) == 200 and any("not_read" in each["event"] for each in lines[count:]))
        file.unlink()
        os.mkfifo(file)
        until(lambda: status(new) == 200 and any("is a pipe" in each.get("reason", "") for each in lines))
    file.unlink()
    assert (status(old), status(new)) == (401, 200)
    write("new")
    until(lambda: status(new) == 200)
    assert not_read() >= before + 3


def test_a_key_has_one_entry_and_a_file_may_begin_with_a_mark(tmp_path):
    """One key under two ids had the limit of the last; editors write a byte order mark; a limit is no slip."""
    digest = hashlib.sha256(b"secret").hexdigest()
    for other in (f"b:{digest}", "secret"):
        with pytest.raises(ConfigError, match="are one key"):
            ApiKeys([f"a:{digest}:5", other])
    for limit in ("0", "0." + "0" * 320 + "1", "0.0000001"):
        with pytest.raises(ConfigError, match="lets none through"):
            ApiKeys([f"a:{digest}:{limit}"])
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfa:" + digest.encode() + b"\r\n")
    assert ApiKeys([], file).refusal("/v1/rank", {b"x-api-key": b"secret"}) is None


@pytest.mark.parametrize("key", [" secret", "secret ", "two words", "schl\u00fcssel", "a\tb"])
def test_a_key_that_no_header_carries_is_refused(key):
    """It would open nothing, and nothing would say why."""
    with pytest.raises(ConfigError, match="API key 2 .not shown. has blanks"):
        ApiKeys(["good", key])
