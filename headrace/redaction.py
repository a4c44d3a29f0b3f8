"""URLs and error texts without their secrets, for messages and logs.

`shown_url` masks what may be a secret in a URL: the password, values of the query, and, in a malformed URL, everything
up to the last position at which a password can end. It never raises, and masks too much rather than too little:

    redis://me:secret@host:6379/0                     redis://me:***@host:6379/0
    redis://:se/cret@host:6379/0                      redis://***@host:6379/0          "/" should be %2F
    https://host/log.parquet?sig=secret               https://host/log.parquet?sig=***
    redis://host:secret                               redis://host:***                 no port, perhaps a password

This module exists because URL parsers (urllib, httpx, yarl) fail on the second and the last of these, and quote the
secret.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from urllib.parse import quote, unquote

MASK = "***"

SHOWN_PARAMETERS = frozenset({"db", "start", "region", "client_name", "socket_timeout", "health_check_interval"})
"""Names of query parameters whose values are shown; all others are masked."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DELIMITER = re.compile(r"[/?#]")
_PORT = re.compile(r":(?P<port>[^:\]@,/?#]*)(?=$|,)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,40}")
_NAMED = re.compile(r"([\w.]+=)?")
"""Prefix of a URL that names its event class."""
_WORD = re.compile(r"[\w.:,+ -]*")
_IN_TEXT = re.compile(_SCHEME.pattern + r"[^\s\"'<>`]+")
_NO_PATH_HAS_AT = ("redis", "rediss", "redis+cluster", "rediss+cluster", "kafka")
"""Schemes of URLs without "@" in the path: an "@" there ends a password that is not percent-encoded."""
_CUTS_MAX = 64
"""Maximum number of delimiters at which a text is split: the number of pieces grows quadratically."""
_SECRET_CHARS_MIN = 3
"""Shorter secrets are not masked in free text, since many words would contain them."""


def shown_url(url: str) -> str:
    """Mask the secrets of `url`; in text that is not a URL, only `...:password@...` is masked.

    >>> shown_url("redis://me:secret@host:6379/0"), shown_url("redis://:sec/ret@host/0")
    ('redis://me:***@host:6379/0', 'redis://***@host/0')
    >>> shown_url("s3://bucket/log/*.parquet?secret_key=x"), shown_url("log/a.parquet")
    ('s3://bucket/log/*.parquet?secret_key=***', 'log/a.parquet')
    """
    scheme = _SCHEME.search(url)
    if scheme is None:
        return re.sub(r":.*@", f":{MASK}@", url, flags=re.DOTALL)
    named, rest = url[: scheme.start()], url[scheme.end() :]
    head = (named if _NAMED.fullmatch(named) else MASK) + scheme[0]
    user, tail = _split_user(scheme[0].removesuffix("://").lower(), rest)
    return head + user + (_shown_tail(tail) if tail else "")


def has_secrets(url: str) -> bool:
    """Whether `shown_url` hides part of `url`."""
    return shown_url(url) != url


def redacted(text: str, *urls: str) -> str:
    """Mask, in a text such as a library's error message, the secrets of `urls` and of URLs that the text contains.

    >>> redacted("no port: 'sec'", "redis://:sec/ret@host"), redacted("GET https://me:pw@host/x failed")
    ("no port: '***'", 'GET https://me:***@host/x failed')
    """
    for url in filter(None, urls):
        text = text.replace(url, shown_url(url)).replace(repr(url)[1:-1], shown_url(url))
        for secret in _secrets_of(url):
            text = text.replace(secret, MASK)
    return _IN_TEXT.sub(lambda match: shown_url(match[0]), text)


def _split_user(scheme: str, rest: str) -> tuple[str, str]:
    """Split a URL without its scheme into the masked user part and the rest."""
    authority = _DELIMITER.split(rest, maxsplit=1)[0]
    before, at, after = rest.rpartition("@")
    if not at or _is_path_with_at(scheme, authority, before):
        return "", rest
    if "?" in before:  # ambiguous: the password contains a "?", or a value of the query an "@"
        return MASK, ""
    user, colon, _ = before.partition(":")
    is_clean = before == authority.rpartition("@")[0] and "@" not in before
    return (f"{user}:{MASK}@" if is_clean and colon else f"{MASK}@"), after


def _is_path_with_at(scheme: str, authority: str, before: str) -> bool:
    """Whether an "@" is part of a file's path, as in `s3://bucket/log@v2/a.parquet`, not the end of a password."""
    if "@" in authority or ":" in before or scheme in _NO_PATH_HAS_AT:
        return False
    return not scheme.startswith("http") or "." in authority or authority == "localhost"


def _shown_tail(tail: str) -> str:
    """Host, path and query, with possible secrets masked."""
    authority = _DELIMITER.split(tail, maxsplit=1)[0]
    if any(port["port"] and not port["port"].isdecimal() for port in _PORT.finditer(authority)):
        return _PORT.sub("", authority) + f":{MASK}"
    place, question, query = tail.partition("#")[0].partition("?")
    return place + question + "&".join(map(_shown_parameter, re.split("[&;]", query)))


def _shown_parameter(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    if not parameter or not (equals and _NAME.fullmatch(name)):
        return MASK if parameter else ""
    return parameter if name in SHOWN_PARAMETERS and _WORD.fullmatch(value) else f"{name}={MASK}"


def _secrets_of(url: str) -> list[str]:
    """The texts that `shown_url` masks, whole and in all pieces into which a parser may split them, longest first."""
    if not has_secrets(url):
        return []
    scheme = _SCHEME.search(url)
    named, rest = (url[: scheme.start()], url[scheme.end() :]) if scheme else ("", url)
    before, at, after = rest.rpartition("@")
    user, colon, _ = before.partition(":")
    tail = after if at else rest
    hidden = [named, *_users(before), *_values(rest.partition("?")[2])]
    hidden += [port["port"] for port in _PORT.finditer(_DELIMITER.split(tail, maxsplit=1)[0])]
    pieces = {piece for text in hidden for piece in _pieces(text)}
    forms = {form for piece in pieces for form in (piece, repr(piece)[1:-1], unquote(piece), quote(piece, safe=""))}
    forms -= {user} if colon else set()
    shown = shown_url(url)
    return sorted(
        (form for form in forms if len(form) >= _SECRET_CHARS_MIN and form not in shown), key=len, reverse=True
    )


def _pieces(text: str) -> Iterator[str]:
    """Every text between two delimiters of `text`: a parser may take any of them for a port, a host or a name."""
    cuts = [match.start() for match in re.finditer("[/?#@:&;=]", text)][:_CUTS_MAX]
    for begin, end in combinations([-1, *cuts, len(text)], 2):
        yield text[begin + 1 : end]


def _users(before: str) -> list[str]:
    """Possible users and passwords in the text before a URL's last "@": up to each "@", and after the first ":"."""
    ends = [match.start() for match in re.finditer("@", before)] + [len(before)]
    users = [before[:end] for end in ends]
    return users + [user.partition(":")[2] for user in users]


def _values(query: str) -> list[str]:
    """Possible values of a query."""
    parameters = [*query.split("&"), *re.split("[&;]", query)]
    return [value if equals else name for name, equals, value in (text.partition("=") for text in parameters)]
