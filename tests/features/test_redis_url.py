"""A store's URL means one Redis without doubt, or it is one error that says how to write it and shows no secret."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, StoreError, StoreUnavailableError
from headrace.features import OnlineStore
from headrace.features.store.link import RedisLink
from headrace.learners import ModelDirectory
from headrace.telemetry import StatusBoard


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("foo", "this is no URL; write redis://user:password@host:6379/0"),
        ("", "this is no URL"),
        ("http://host", "unknown scheme; write redis://"),
        ("redis://...", r"'\.\.\.' is no host"),
        ("redis://host name", "is no host"),
        ("redis://", "names no host; write redis://localhost"),
        ("redis://:6379/0", "names no host"),
        ("redis://host:notaport", "its port is no number from 1 to 65535"),
        ("redis://host:0", "its port is no number"),
        ("redis://host:99999", "its port is no number"),
        ("redis://[::1:6379", "its port is no number"),
        ("redis://:pw@host:6379/notadb", "no database number"),
        ("redis://host/1/2", "no database number"),
        ("redis+cluster://host:6379/2", "database 0 alone"),
        ("redis://host?foo=1", "unknown option; known are .*, password"),
        ("redis://host?decode_responses=True", "unknown option"),
        ("redis://host?protocol=3", "unknown option"),
        ("redis://host?socket_timeout=nan", "option socket_timeout has a value"),
        ("redis://host?db=-1", "option db has a value"),
        ("redis://host?ssl_cert_reqs=none", "needs TLS; write rediss://"),
        ("unix://tmp/redis.sock", "three slashes"),
        ("redis://host\n", "white space"),
        ("redis://:TOPSECRET/x@host", "percent-encode"),
        ("redis://:TOPSECRET?x@host", "percent-encode"),
        ("redis://:TOPSECRET#x@host", "percent-encode"),
        ("redis://host:6379#TOPSECRET", "percent-encode"),
        ("redis://host:TOPSECRET", "percent-encode"),
    ],
)
def test_what_names_no_redis_is_one_error(url, message):
    with pytest.raises(StoreError, match=message) as caught:
        OnlineStore.open(url)
    assert not isinstance(caught.value, StoreUnavailableError)
    assert len(str(caught.value).splitlines()) == 1


WAYS = (OnlineStore.open, lambda url: RedisLink(url).mget([b"x"]), lambda url: StatusBoard(url).read())


@given(st.text(st.sampled_from("TOPSECRET/?#@%: \n'"), max_size=20).map(lambda text: f"QXZ{text}9ZX"))
def test_no_error_of_any_way_to_redis_shows_a_password(password):
    """Store, status board and link have one way in; tracebacks with causes and contexts are looked at."""
    for url in (f"redis://:{password}@127.0.0.1:1/0", f"redis://127.0.0.1:1/0?password={password}"):
        for way in WAYS:
            with pytest.raises(HeadraceError) as caught:
                way(url)
            shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.__context__)
            assert parts_shown(password, shown) == []


def parts_shown(password, shown):
    """Four characters of a password in a row, mere delimiters apart, as they are shown outside of source lines."""
    words = "\n".join(line for line in shown.splitlines() if not line.startswith("    "))
    parts = {password[i : i + 4] for i in range(len(password) - 3)}
    return [part for part in parts if sum(map(str.isalnum, part)) > 2 and part in words]


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:1", "redis://127.0.0.1:1/0"])
def test_every_user_of_redis_takes_any_url_of_a_store(url, tmp_path):
    """Nobody listens: a status is not posted, a model is published without a notice, the store says so."""
    assert not StatusBoard(url).post("materialize", {})
    ModelDirectory(tmp_path, url)
    with pytest.raises(StoreUnavailableError, match="check that Redis runs there"):
        OnlineStore.open(url)


def test_a_status_is_posted_and_read_on_one_server_and_on_a_cluster(store_url):
    board = StatusBoard(store_url, "one")
    assert board.read() == {}
    assert board.post("train", {"rows": 3})
    assert board.post("materialize", {"rows": 4})
    shown = board.read()
    assert {role: document["rows"] for role, document in shown.items()} == {"train": 3, "materialize": 4}
    board.close()
