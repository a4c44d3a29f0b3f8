"""Doctor and health look at the Redis that the settings name, one server or a cluster, and at what it may drop."""

import pytest
import redis

from headrace.cli.doctor import check_health, examine
from headrace.errors import EvictionError, ServiceError, StoreError, StoreUnavailableError
from headrace.local import free_port
from headrace.settings import Settings
from headrace.telemetry import StatusBoard


def settings_of(url, **more):
    return Settings(redis_url=url, brokers=f"127.0.0.1:{free_port()}", **more)


def findings(settings):
    return {finding.name: finding for finding in examine(settings)}


@pytest.fixture
def evicting(redis_url):
    """URL of a Redis that may drop any key."""
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            yield redis_url
        finally:
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")


def test_a_server_and_a_cluster_are_good(store_url):
    settings = settings_of(store_url)
    shown = findings(settings)
    assert (shown["redis"].state, shown["redis memory"].state) == ("good", "good")
    assert shown["redis"].found.startswith(f"{store_url}, version ")
    with pytest.raises(ServiceError, match="materialize: shows no status; there are none"):
        check_health("materialize", settings)
    StatusBoard(store_url).post("materialize", {})
    check_health("materialize", settings)


def test_a_redis_that_may_drop_records_is_bad_unless_it_is_allowed(evicting):
    StatusBoard(evicting).post("materialize", {})
    shown = findings(settings_of(evicting))["redis memory"]
    assert shown.state == "bad"
    assert "may drop records: maxmemory-policy allkeys-lru" in shown.found
    assert "noeviction" in shown.advice
    with pytest.raises(EvictionError, match="materialize: Redis at .* may drop records.*HEADRACE_ALLOW_EVICTION"):
        check_health("materialize", settings_of(evicting))
    allowed = settings_of(evicting, allow_eviction=True)
    assert findings(allowed)["redis memory"].state == "note"
    check_health("materialize", allowed)


def test_every_policy_but_noeviction_is_bad(evicting):
    """Also one that spares keys without a ttl, and where there is no maxmemory yet."""
    StatusBoard(evicting).post("materialize", {})
    with redis.Redis.from_url(evicting) as client:
        client.config_set("maxmemory-policy", "volatile-ttl")
        client.config_set("maxmemory", 0)
        assert findings(settings_of(evicting))["redis memory"].state == "bad"
        client.config_set("maxmemory-policy", "noeviction")
    assert findings(settings_of(evicting))["redis memory"].state == "good"
    check_health("materialize", settings_of(evicting))


def test_what_was_dropped_before_is_told(evicting):
    """The policy may be right again by now: the keys are gone all the same."""
    with redis.Redis.from_url(evicting) as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)
        for number in range(300):
            client.set(f"any:{number}", b"x" * 10_000)
        client.config_set("maxmemory-policy", "noeviction")
        shown = findings(settings_of(evicting))["redis memory"]
        client.config_resetstat()
    assert shown.state == "note"
    assert "keys were dropped since it started" in shown.found
    assert "verify" in shown.advice


def test_a_url_that_names_no_redis_is_bad_and_one_that_is_away_a_note():
    assert findings(settings_of("redis://host:notaport"))["redis"].state == "bad"
    for scheme in ("redis", "redis+cluster"):
        away = settings_of(f"{scheme}://127.0.0.1:{free_port()}")
        assert findings(away)["redis"].state == "note"
        with pytest.raises(StoreUnavailableError, match="check that Redis runs there"):
            check_health("materialize", away)
    with pytest.raises(StoreError, match="no URL"):
        check_health("materialize", settings_of("foo"))


def test_a_user_without_info_is_told_what_to_grant(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command("ACL", "SETUSER", "narrow", "on", ">word", "~*", "+@all", "-info")
        try:
            shown = findings(settings_of(redis_url.replace("//", "//narrow:word@")))
        finally:
            client.execute_command("ACL", "DELUSER", "narrow")
    assert shown["redis"].state == "good"
    assert (shown["redis memory"].state, "+info" in shown["redis memory"].found) == ("note", True)
