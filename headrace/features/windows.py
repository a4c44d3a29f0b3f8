"""Windows and hops: which events a window covers, and the ring of tiles that stores it.

The value of a window W with hop h at time t is the aggregate of the events with floor(t, h) - W <= event_time < t:

    event time   ----[----|----|----|----|----|--)--------->      W = 5 h
                     ^                        ^  ^
        floor(t, h) - W             floor(t, h)  t                the tail moves once a hop, the head is exact

    ring         at most W / h whole tiles and the one that t is in, tile number = event_time // h;
                 only tiles with events are stored, each with its number (state/rings/update.py)

So a window is exact at its head and at most one hop too long at its tail, which W / h >= 24 keeps under 4.2 %.
"lifetime" is a single, permanent tile.
"""

import re
from dataclasses import dataclass
from typing import Any

from headrace.errors import DeclarationError

SECOND_US = 1_000_000
UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
HOPS_S = (1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
HOPS_MIN = 24
WINDOW_MIN_S, WINDOW_MAX_S = 10, 400 * 86_400
SPAN_MAX_S = 36_500 * 86_400  # a century: far below the overflow of times and the largest ttl of Redis
TILES_CHOSEN_MAX = 4_000  # beyond that, an odd length would take an unexpected amount of memory
TILES_MAX = 100_000
LIFETIME = "lifetime"


@dataclass(frozen=True, slots=True)
class Window:
    """A window: `label` as written, length and hop in microseconds; both 0 for lifetime."""

    label: str
    window_us: int
    hop_us: int

    @property
    def span(self) -> int:
        """Number of whole tiles in the window, W / h."""
        return self.window_us // self.hop_us if self.hop_us else 0

    @property
    def tiles(self) -> int:
        """Maximum number of tiles that the window covers, W / h + 1."""
        return self.span + 1

    def start_us(self, now_us: Any) -> Any:
        """First event time of the window as of `now_us`, inclusive; an int or an int64 array (n,), like `now_us`.

        >>> window_of("10m").start_us(1_000_007_000_000) // 1_000_000 == 1_000_005 - 600
        True
        """
        return now_us // self.hop_us * self.hop_us - self.window_us if self.hop_us else -(2**62)


def parse_span_s(text: str, where: str) -> int:
    """Seconds of a span such as "30s", "10m", "24h", "7d".

    Raises:
        DeclarationError: `text` is not such a span, or is longer than a century; `where` names the argument.

    >>> parse_span_s("10m", "")
    600
    """
    match = re.fullmatch(r"([1-9][0-9]*)([smhd])", text) if isinstance(text, str) else None
    if not match:
        raise DeclarationError(f'{where}: {text!r} is no span of time; write "30s", "10m", "24h" or "7d"')
    seconds = int(match[1]) * UNIT_S[match[2]] if len(match[1]) < 20 else SPAN_MAX_S + 1
    if seconds > SPAN_MAX_S:
        raise DeclarationError(f"{where}: {text!r} is longer than {SPAN_MAX_S // 86_400}d; write a shorter span")
    return seconds


def written_span(seconds: int) -> str:
    """Write seconds as a span in the largest unit that divides them; the inverse of `parse_span_s`.

    >>> written_span(5_400)
    '90m'
    """
    unit = max((unit for unit in UNIT_S if seconds % UNIT_S[unit] == 0), key=lambda unit: UNIT_S[unit])
    return f"{seconds // UNIT_S[unit]}{unit}"


def window_of(label: str, hop: str | None = None, where: str = "window") -> Window:
    """The window named by `label`, with the given hop or one chosen by its length.

    Raises:
        DeclarationError: not a span, too short or long, a hop that does not divide it, or too many tiles.

    >>> window_of("1h").hop_us // SECOND_US, window_of("24h").tiles
    (120, 25)
    """
    if label == LIFETIME:
        if hop is not None:
            raise DeclarationError(f"{where}: a lifetime window has no hop; leave hop={hop!r} out")
        return Window(label, 0, 0)
    length_s = parse_span_s(label, where)
    if not WINDOW_MIN_S <= length_s <= WINDOW_MAX_S:
        raise DeclarationError(f'{where}: a window is 10s to 400d long; {label!r} is not (or write "{LIFETIME}")')
    hop_s = _chosen_hop_s(length_s, label, where) if hop is None else _given_hop_s(length_s, label, hop, where)
    return Window(label, length_s * SECOND_US, hop_s * SECOND_US)


def _chosen_hop_s(length_s: int, label: str, where: str) -> int:
    fitting = [hop for hop in HOPS_S if length_s % hop == 0 and length_s >= HOPS_MIN * hop]
    hop_s = max(fitting, default=1)
    if length_s // hop_s > TILES_CHOSEN_MAX:
        longest_s = max(hop for hop in HOPS_S if length_s >= HOPS_MIN * hop)
        near = round(length_s / longest_s) * longest_s
        raise DeclarationError(
            f"{where}: {label!r} divides only into {length_s // hop_s} tiles of {hop_s} s; write a length that is a "
            f"multiple of {written_span(longest_s)}, such as {written_span(near)!r}, or give hop=",
        )
    return hop_s


def _given_hop_s(length_s: int, label: str, hop: str, where: str) -> int:
    hop_s = parse_span_s(hop, f"{where} · hop")
    if hop_s > length_s:
        raise DeclarationError(
            f"{where}: window {label!r} is shorter than its hop {hop!r}; write a hop that divides it"
        )
    if length_s % hop_s:
        fits = [written_span(divisor_s) for divisor_s in HOPS_S if length_s % divisor_s == 0]
        raise DeclarationError(f"{where}: hop {hop!r} does not divide window {label!r}; use one of {', '.join(fits)}")
    if length_s // hop_s > TILES_MAX:
        raise DeclarationError(
            f"{where}: hop {hop!r} makes {length_s // hop_s} tiles, at most {TILES_MAX}; write a longer hop"
        )
    return hop_s
