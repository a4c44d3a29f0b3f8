"""Parse and check a store's URL before redis-py, which misreads many malformed URLs and quotes secrets in its errors.

    redis://user:password@host:6379/0      rediss:// with TLS      unix:///path/to/socket
    redis+cluster://host:6379              any node of a cluster; rediss+cluster:// with TLS
    embedded://folder                      the Redis of a folder on this machine (headrace.local.embedded_url)

Special characters in user and password are percent-encoded. Connection options follow as `?name=value`.
"""

import contextlib
import ipaddress
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from headrace.errors import StoreError
from headrace.redaction import shown_url
from headrace.stack_state import EMBEDDED

FORMS = "redis://user:password@host:6379/0, rediss://, unix:///path, redis+cluster://host:6379, or embedded://folder"

_CLUSTER = "+cluster"
_SCHEMES = ("redis", "rediss", "unix", f"redis{_CLUSTER}", f"rediss{_CLUSTER}")
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": int,
    "username": str,
    "password": str,
    "client_name": str,
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "socket_read_size": int,
    "health_check_interval": int,
    "max_connections": int,
}
"""Query parameters passed to redis-py, and their types. Others would change the protocol or fail inside redis-py."""
_TLS_OPTION = re.compile(r"ssl_(cert_reqs|ca_certs|ca_path|ca_data|certfile|keyfile|password|check_hostname|ciphers)")
_ENCODE = "percent-encode / ? # @ : and % in user and password, as Python's urllib.parse.quote(text, safe='') does"
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_DATABASE = re.compile(r"/?|/\d{1,5}/?")


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A checked URL: `url` in the form for redis-py, and `shown` without secrets."""

    url: str
    shown: str
    is_cluster: bool


def parse_store_url(url: str) -> StoreUrl:
    """Parse `url`, which must identify one Redis unambiguously.

    Raises:
        StoreError: it does not; the message contains no secrets.
        ConfigError: the URL of an embedded Redis lacks the folder.
    """
    if url.startswith(EMBEDDED):
        from headrace.local.embedded_url import folder_of

        return StoreUrl(f"{EMBEDDED}{folder_of(url)}", url, is_cluster=False)
    fault = next(_faults(url), None)
    if fault:
        shown = shown_url(url) if "://" in url else shown_url(f"redis://{url}").removeprefix("redis://")
        raise StoreError(f"store URL {shown!r}: {fault}")
    return StoreUrl(url.replace(_CLUSTER, "", 1), shown_url(url), url.partition("://")[0].endswith(_CLUSTER))


def _faults(url: str) -> Iterator[str]:
    """Faults of a URL, each with its fix; the caller uses only the first. Nothing of user and query is quoted."""
    scheme, colon, rest = url.partition("://")
    before, at, after = rest.rpartition("@")
    if not colon:
        yield f"this is no URL; write {FORMS}"
    if scheme not in _SCHEMES:
        yield f"unknown scheme; write {FORMS}"
    if url != url.strip() or not url.isprintable():
        yield "it holds white space at an end, or control characters; remove them"
    if at and re.search("[/?#]", before):
        yield f'an "@" stands behind a "/", "?" or "#", so it is not clear where the password ends: {_ENCODE}'
    if "#" in after:
        yield f'a "#" begins what is no part of the URL: {_ENCODE}'
    if not _port_is_number(after):
        yield f"its port is no number from 1 to 65535 (if it is a password: {_ENCODE}); write {FORMS}"
    parts = urlsplit(f"redis://{after}")
    yield from _faults_of_socket(parts) if scheme == "unix" else _faults_of_host(scheme, parts)
    yield from _faults_of_options(scheme, parts)


def _port_is_number(after: str) -> bool:
    """Whether the port is missing or a valid number, so that host and port can be separated."""
    try:
        port = urlsplit(f"redis://{after}").port
    except ValueError:
        return False
    return port is None or port > 0


def _faults_of_socket(parts: SplitResult) -> Iterator[str]:
    if parts.netloc or not parts.path.strip("/"):
        yield "it names no socket; write unix:///path/to/redis.sock, with three slashes"


def _faults_of_host(scheme: str, parts: SplitResult) -> Iterator[str]:
    if not parts.hostname:
        yield f"it names no host; write {scheme}://localhost:6379/0, or the host that is meant"
    elif not _is_host(parts.hostname):
        yield f"{parts.hostname!r} is no host; write {FORMS}"
    if not _DATABASE.fullmatch(parts.path):
        yield "what follows the host is no database number; write .../0"
    if scheme.endswith(_CLUSTER) and parts.path.strip("/0"):
        yield "a cluster has the database 0 alone; leave the number out"


def _is_host(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.partition("%")[0])
        return True
    try:
        return bool(_HOST.fullmatch(host.encode("idna").decode()))
    except UnicodeError:
        return False


def _faults_of_options(scheme: str, parts: SplitResult) -> Iterator[str]:
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        is_tls = bool(_TLS_OPTION.fullmatch(name))
        if is_tls and not scheme.startswith("rediss"):
            yield f"its option {name} needs TLS; write rediss:// in place of redis://"
        if not is_tls and name not in _OPTIONS:
            yield f"it has an unknown option; known are {', '.join(sorted(_OPTIONS))}, and ssl_... with rediss://"
        if not _is_value(name, text):
            yield f"its option {name} has a value that does not fit"


def _is_value(name: str, text: str) -> bool:
    parser = _OPTIONS.get(name, str)
    try:
        value = parser(text)
    except ValueError:
        return False
    if parser is int:
        return bool(value >= (0 if name in {"db", "health_check_interval"} else 1))
    return parser is not float or bool(0 < value < math.inf)
