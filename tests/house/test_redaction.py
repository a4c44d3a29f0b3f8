"""No secret of a URL is shown, however the URL is written: passwords, queries, and what looks like neither."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.redaction import has_secrets, redacted, shown_url

SCHEMES = ("redis", "rediss", "redis+cluster", "https", "http", "s3", "gs", "kafka", "unix", "memory")
PASSWORDS = st.text(st.sampled_from("TOPSECRET/?#@:%&=;,+ '\"[]é"), min_size=1, max_size=24).map(
    lambda text: f"q{text}9Z"
)
"""Every delimiter of a URL at any place; long enough to be told from the rest."""
VALUES = PASSWORDS.map(lambda text: text.translate({ord(char): None for char in "&;="}))
"""Values of a query end at these."""


def leaks(secret, shown):
    """Whether four characters of a secret in a row, none of them a delimiter alone, can be read."""
    pieces = {secret[i : i + 4] for i in range(len(secret) - 3)}
    return [piece for piece in pieces if piece in shown and sum(char.isalnum() for char in piece) > 2]


@given(
    scheme=st.sampled_from(SCHEMES),
    user=st.sampled_from(["", "me"]),
    password=PASSWORDS,
    tail=st.sampled_from(["", "/0", "/dir/*.parquet", "/0?db=1", "/a@b/c"]),
    named=st.sampled_from(["", "Engagement="]),
)
@example("redis", "", "qTOPSECRET/x9Z", "/0", "")
@example("https", "me", "q@TOPSECRET?9Z", "/a@b/c", "")
def test_no_part_of_a_password_is_shown(scheme, user, password, tail, named):
    """Unescaped delimiters in it included: where nobody can say where it ends, more is hidden."""
    url = f"{named}{scheme}://{user}:{password}@localhost:6379{tail}"
    assert leaks(password, shown_url(url)) == []
    assert shown_url(url).startswith(f"{named}{scheme}://")
    assert has_secrets(url)
    message = f"cannot open {url!r}: no port in {password.split('/')[0]!r} of {url}"
    assert leaks(password, redacted(message, url)) == []


@given(scheme=st.sampled_from(SCHEMES), name=st.sampled_from(["password", "sig", "token", "username"]), value=VALUES)
def test_no_value_of_a_query_is_shown(scheme, name, value):
    """A value that holds an "@" hides the host as well."""
    url = f"{scheme}://localhost:6379/x?region=eu&{name}={value}"
    assert leaks(value, shown_url(url)) == []
    assert leaks(value, redacted(f"GET {url} failed: {value}", url)) == []


@given(st.text(max_size=60) | st.text(string.printable, max_size=60) | st.text("ab:/?#@%&=.[]*", max_size=40))
def test_any_text_is_taken_and_twice_is_as_once(text):
    once = shown_url(text)
    assert shown_url(once) == once
    redacted(text, text)


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://[::1]:6379/0",
        "redis+cluster://a.b:1",
        "unix:///tmp/redis.sock",
        "s3://bucket/log/2024-01-01/*.parquet",
        "s3://bucket/log@v2/a.parquet",
        "https://cdn.example.org/pkg@1.2/data.parquet",
        "kafka://a:9092,b:9093?start=latest",
        "kafka://a:9092?start=0:1200,1:900",
        "kafka://a:9092?start=2026-01-01T00:00:00",
        "Engagement=data/engagements/**/*.arrow",
        "engagements/a.parquet@5f3a9c01",
        "memory://x",
        "embedded://.headrace/redis",
        "",
        "foo",
    ],
)
def test_what_holds_no_secret_is_shown_as_it_is(url):
    """A message that hides the place helps nobody."""
    assert shown_url(url) == url
    assert not has_secrets(url)
    assert redacted(f"{url} cannot be read: why", url) == f"{url} cannot be read: why"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:secret@host:6379/0", "redis://me:***@host:6379/0"),
        ("redis://:a@b@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:se/cret@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:se?cret@host:6379/0", "redis://***"),
        ("redis://secret@host", "redis://***@host"),
        ("redis://host:secret/0", "redis://host:***"),
        ("redis://host?password=a&db=1", "redis://host?password=***&db=1"),
        ("https://me:pw@host/x.parquet?X-Amz-Signature=abc", "https://me:***@host/x.parquet?X-Amz-Signature=***"),
        ("me:pw@redis://host", "***redis://host"),
        ("https:/me:pw@host/x.parquet", "https:***@host/x.parquet"),
    ],
)
def test_the_place_stays_readable_where_it_is_clear(url, shown):
    assert shown_url(url) == shown
