"""API keys: which routes a caller may use, and how often.

A key is configured by its hash, so that no setting, file or backup holds a usable key:

    <id>:<sha256 of the key, hex>[:<requests a second>[:<scope>+<scope>..]]         mobile:9f86d0...:200:rank+features

Each replica applies the limits on its own. A key without scopes has all of them. A setting without a colon is the key
itself, meant for a laptop; it has no limit and all scopes.

A file of keys is read again when it changes, so that keys can be added or withdrawn while the service runs.
"""

import hashlib
import math
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from prometheus_client import Counter

from headrace.atomic import state_of
from headrace.errors import ConfigError
from headrace.serving.refusals import Refusal

SCOPES = {"rank": "/v1/rank and /v1/score", "features": "/v1/features", "operate": "/v1/model, /v1/report, /metrics"}
"""Scope -> routes that it opens; every key opens /docs and /openapi.json."""
_PREFIXES = {
    "/v1/rank": "rank",
    "/v1/score": "rank",
    "/v1/features": "features",
    "/v1/model": "operate",
    "/v1/report": "operate",
    "/metrics": "operate",
}
_HASHED = re.compile(
    r"(?P<id>[\w.-]{1,64}):(?P<digest>[0-9a-fA-F]{64})(:(?P<limit>\d*\.?\d*))?(:(?P<scopes>[a-z+]+))?", re.ASCII
)
_IN_HEADERS = re.compile(r"[!-~]+")
_FORM = "write id:sha256[:requests a second[:scope+scope]]"

LIMIT_MIN_PER_S = 1e-6
"""Smallest limit, one request in 12 days: a smaller one is a mistake, and its Retry-After could overflow."""
LOOK_S = 1.0
"""Seconds between checks whether the file of keys has changed; a check costs a microsecond."""

NOT_READ = Counter("headrace_api_keys_not_read_total", "Changes of the file of API keys that could not be taken.")
KEY_REQUESTS = Counter("headrace_key_requests_total", "Requests by API key and outcome.", ["key", "outcome"])

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ApiKey:
    """One key: its id for logs and metrics, its SHA-256, its requests a second (inf: no limit) and its scopes."""

    id: str
    digest: bytes
    limit_per_s: float = math.inf
    scopes: frozenset[str] = frozenset(SCOPES)
    _tokens: float = field(default=-1.0, init=False)
    _filled_s: float = field(default=0.0, init=False)

    @classmethod
    def parse(cls, text: str, number: int) -> "ApiKey":
        """Parse the key that `text` configures; `number` is its position, counted from 1.

        Raises:
            ConfigError: `text` has another form, or names an unknown scope.
        """
        if ":" not in text:
            if not text:
                raise ConfigError(f"API key {number} is empty, and would let everyone in; {_FORM}")
            if not _IN_HEADERS.fullmatch(text):
                raise ConfigError(
                    f"API key {number} (not shown) has blanks, or characters that no header carries: no request could "
                    f"bring it; {_FORM}"
                )
            return cls(f"key-{number}", hashlib.sha256(text.encode()).digest())
        match = _HASHED.fullmatch(text)
        if match is None:
            raise ConfigError(f"API key {number} (not shown) is of another form; {_FORM}")
        scopes = frozenset((match["scopes"] or "+".join(SCOPES)).split("+"))
        if unknown := scopes - SCOPES.keys():
            raise ConfigError(f"API key {match['id']}: no scope {min(unknown)!r}; there are {', '.join(SCOPES)}")
        limit = math.inf if match["limit"] in {None, "", "."} else float(match["limit"])
        if limit < LIMIT_MIN_PER_S:
            raise ConfigError(f"API key {match['id']}: a limit of {limit:g} requests a second lets none through")
        return cls(match["id"], bytes.fromhex(match["digest"]), limit, scopes)

    def wait_s(self, now_s: float) -> float:
        """Take one request from the limit; return 0.0, or the seconds until one is allowed. Not thread-safe.

        The limit is a token bucket that holds the requests of one second, at least one.
        """
        if self.limit_per_s == math.inf:
            return 0.0
        size = max(self.limit_per_s, 1.0)
        filled = size if self._tokens < 0 else self._tokens + (now_s - self._filled_s) * self.limit_per_s
        self._tokens, self._filled_s = min(filled, size), now_s
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.limit_per_s
        self._tokens -= 1.0
        return 0.0


class ApiKeys:
    """The keys of a service, which is open if there are none. Not thread-safe.

    Args:
        texts: keys of the settings.
        file: a file of more keys, one a line, read again when it changes. If it is faulty or empty by then, this is
            logged and the previous keys stay.

    Raises:
        ConfigError: a key has another form, an id or a key occurs twice, or the file is empty or cannot be read.
    """

    def __init__(self, texts: Iterable[str], file: Path | None = None) -> None:
        self._texts = tuple(texts)
        self._file = file
        self._file_state = None if file is None else state_of(file)
        self._looked_s = time.monotonic()
        self._by_digest = self._read()

    def _read(self) -> dict[bytes, ApiKey]:
        """Read all keys, by digest."""
        given = [*self._texts, *(keys_of_file(self._file) if self._file else ())]
        keys = [ApiKey.parse(text, number) for number, text in enumerate(given, 1)]
        ids = [key.id for key in keys]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ConfigError(f"API key {twice[0]}: configured twice; give each an id of its own")
        by_digest: dict[bytes, ApiKey] = {}
        for key in keys:
            if (other := by_digest.setdefault(key.digest, key)) is not key:
                raise ConfigError(f"API keys {other.id} and {key.id} are one key, which has one limit; remove either")
        if plain := [key.id for key, text in zip(keys, given, strict=True) if ":" not in text]:
            log.warning("api_keys_in_plain_text", keys=plain, advice=_FORM)
        return by_digest

    def _look(self, now_s: float) -> None:
        """Read the keys again if their file has changed."""
        if self._file is None or now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        state = state_of(self._file)
        if state == self._file_state:
            return
        self._file_state = state
        try:
            _refuse_pipe(self._file)
            self._by_digest = self._read()
        except ConfigError as exc:
            NOT_READ.inc()
            log.warning("api_keys_not_read_again", reason=str(exc), advice="the keys before the change stay")
        else:
            log.info("api_keys_read_again", keys=sorted(key.id for key in self._by_digest.values()))

    def __bool__(self) -> bool:
        return bool(self._by_digest)

    def refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        """Return why a request is refused (401, 403 or 429), None if it is not. For the event loop only."""
        now_s = time.monotonic()
        self._look(now_s)
        # The lookup is by hash, so its duration reveals nothing about the keys.
        key = self._by_digest.get(hashlib.sha256(_given(headers)).digest())
        if key is None:
            KEY_REQUESTS.labels(key="", outcome="unknown").inc()
            fix = "send the header X-API-Key: <key> or Authorization: Bearer <key>"
            return Refusal(401, "unauthorized", "no known API key in the request", fix)
        scope = next((scope for prefix, scope in _PREFIXES.items() if path.startswith(prefix)), None)
        if scope is not None and scope not in key.scopes:
            KEY_REQUESTS.labels(key=key.id, outcome="forbidden").inc()
            detail = f"the API key {key.id} has no scope {scope}"
            return Refusal(403, "forbidden", detail, f"use a key whose scope opens {SCOPES[scope]}")
        wait_s = key.wait_s(now_s)
        if wait_s > 0:
            KEY_REQUESTS.labels(key=key.id, outcome="limited").inc()
            detail = f"the API key {key.id} may send {key.limit_per_s:g} requests a second to a replica"
            fix = "try again after the seconds of Retry-After"
            return Refusal(429, "too_many_requests", detail, fix, retry_after_s=max(math.ceil(wait_s), 1))
        KEY_REQUESTS.labels(key=key.id, outcome="accepted").inc()
        return None


def keys_of_file(path: Path) -> Collection[str]:
    """Read the keys of a file, one a line; blank lines and lines that begin with # are skipped.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"HEADRACE_API_KEYS_FILE {path} cannot be read: {exc}") from exc
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"HEADRACE_API_KEYS_FILE {path} holds no key; {_FORM}, one a line")
    return keys


def _refuse_pipe(file: Path) -> None:
    """Raise ConfigError if `file` is a pipe: opening it would block all requests."""
    if file.is_fifo():
        raise ConfigError(f"HEADRACE_API_KEYS_FILE {file} is a pipe, which can be read at the start alone")


def _given(headers: dict[bytes, bytes]) -> bytes:
    """Return the key in the headers of a request; empty if there is none, which is no valid key."""
    given = headers.get(b"x-api-key")
    if given is None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if scheme.lower() == b"bearer" else b""
    return given
