"""Features by their definitions: plain Python over a list of events, no kernel, nothing clever.

An event is a dict with `time` (microseconds), `id` (text), `class` (name of the event class) and its values. Each
function takes the events of one entity that count, and gives what a read must give; None is "no value".
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import xxhash

Event = dict[str, Any]

SECOND_US = 1_000_000
LADDER_S = (1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(span: str) -> int:
    """Seconds of "10m"."""
    return int(span[:-1]) * UNIT_S[span[-1]]


def hop_us(span: str) -> int:
    """The hop of a window: the largest step of the ladder that divides it at least 24 times, or a second."""
    window_s = seconds(span)
    return max((step for step in LADDER_S if window_s % step == 0 and window_s // step >= 24), default=1) * SECOND_US


def window(events: Sequence[Event], span: str, now_us: int, hop: str | None = None) -> list[Event]:
    """The events with floor(now, hop) - window <= time < now."""
    step_us = seconds(hop) * SECOND_US if hop else hop_us(span)
    start_us = math.floor(now_us / step_us) * step_us - seconds(span) * SECOND_US
    return [event for event in events if start_us <= event["time"] < now_us]


def before(events: Sequence[Event], now_us: int) -> list[Event]:
    """The events before now: a lifetime."""
    return [event for event in events if event["time"] < now_us]


def numbers(events: Sequence[Event], value: str) -> list[float]:
    """The finite values: null, NaN and infinities are left out."""
    return [float(event[value]) for event in events if event[value] is not None and math.isfinite(event[value])]


def count(events: Sequence[Event]) -> int:
    """Number of events."""
    return len(events)


def total(events: Sequence[Event], value: str) -> float:
    """Sum."""
    return math.fsum(numbers(events, value))


def mean(events: Sequence[Event], value: str) -> float | None:
    """Arithmetic mean."""
    found = numbers(events, value)
    return math.fsum(found) / len(found) if found else None


def least(events: Sequence[Event], value: str) -> float | None:
    """Smallest value."""
    return min(numbers(events, value), default=None)


def most(events: Sequence[Event], value: str) -> float | None:
    """Largest value."""
    return max(numbers(events, value), default=None)


def spread(events: Sequence[Event], value: str) -> float | None:
    """Largest minus smallest value."""
    found = numbers(events, value)
    return max(found) - min(found) if found else None


def variance(events: Sequence[Event], value: str, ddof: int = 1) -> float | None:
    """Squared deviations from the mean over count - ddof."""
    found = numbers(events, value)
    if len(found) <= ddof:
        return None
    middle = math.fsum(found) / len(found)
    return math.fsum((x - middle) ** 2 for x in found) / (len(found) - ddof)


def deviation(events: Sequence[Event], value: str, ddof: int = 1) -> float | None:
    """Root of the variance."""
    found = variance(events, value, ddof)
    return None if found is None else math.sqrt(found)


def decayed(events: Sequence[Event], half_life: str, now_us: int, value: str | None = None) -> float:
    """Sum of values (of ones) that weigh half after each half-life."""
    life_us = seconds(half_life) * SECOND_US
    held = [event for event in events if value is None or numbers([event], value)]
    return math.fsum(
        (1.0 if value is None else event[value]) * 2.0 ** (-(now_us - event["time"]) / life_us) for event in held
    )


def in_order(events: Sequence[Event]) -> list[Event]:
    """By time; at equal times by the hash of the id."""
    return sorted(events, key=lambda event: (event["time"], id_hash(event)))


def id_hash(event: Event) -> int:
    """XXH64 of the id, seeded by the XXH64 of the class's name."""
    return xxhash.xxh64_intdigest(event["id"].encode(), seed=xxhash.xxh64_intdigest(event["class"].encode()))


def first(events: Sequence[Event], value: str) -> Any:
    """Oldest value that is not null."""
    return next((event[value] for event in in_order(events) if event[value] is not None), None)


def last(events: Sequence[Event], value: str) -> Any:
    """Newest value that is not null."""
    return next((event[value] for event in reversed(in_order(events)) if event[value] is not None), None)


def last_n(events: Sequence[Event], value: str, n: int) -> list[Any]:
    """Newest values that are not null, newest first; an event that came twice counts once."""
    return [event[value] for event in reversed(in_order(once(events))) if event[value] is not None][:n]


def last_distinct(events: Sequence[Event], value: str, n: int) -> list[Any]:
    """Newest different values, newest first."""
    return list(dict.fromkeys(last_n(events, value, len(events))))[:n]


def sequence(events: Sequence[Event], value: str, n: int, present: Sequence[str] = ()) -> list[Any]:
    """Values of the newest events in order of time; events with a null in `present` are left out."""
    held = [event for event in in_order(once(events)) if all(event[name] is not None for name in present)]
    return [event[value] for event in held[-n:]]


def once(events: Sequence[Event]) -> list[Event]:
    """Each event once, by class, time and id."""
    return list({(event["class"], event["time"], event["id"]): event for event in events}.values())


def since(events: Sequence[Event], now_us: int) -> float | None:
    """Seconds since the newest event."""
    return (now_us - max(event["time"] for event in events)) / SECOND_US if events else None


def ratio(part: float, whole: float, prior: tuple[float, float] = (0.0, 0.0)) -> float | None:
    """Mean of the posterior of a Beta prior; none where nothing is known."""
    weight = whole + sum(prior)
    return (part + prior[0]) / weight if weight else None


def same(ours: Any, expected: Any, scale: float = 1.0) -> bool:
    """Equal; floats within 1e-9 of the larger of them and of `scale`."""
    if isinstance(expected, list):
        return len(ours) == len(expected) and all(map(same, ours, expected))
    if isinstance(expected, float) and isinstance(ours, float):
        return math.isclose(ours, expected, rel_tol=1e-9, abs_tol=1e-9 * scale)
    return bool(ours == expected)


def plain(value: Any) -> Any:
    """NaN inside a list is null to a frame; so it is here."""
    if isinstance(value, list):
        return [plain(element) for element in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def answers(
    definitions: dict[str, Callable[[list[Event], int], Any]], events: list[Event], now_us: int
) -> dict[str, Any]:
    """Every feature of one entity as of `now_us`."""
    return {name: define(events, now_us) for name, define in definitions.items()}


def distinct(events: Sequence[Event], value: str) -> int:
    """Different values that are not null."""
    return len({event[value] for event in events if event[value] is not None})


def frequencies(events: Sequence[Event], value: str) -> dict[Any, int]:
    """How often each value came that is not null."""
    found: dict[Any, int] = {}
    for event in events:
        if event[value] is not None:
            found[event[value]] = found.get(event[value], 0) + 1
    return found


def quantile(events: Sequence[Event], value: str, q: float) -> float | None:
    """The number of rank floor(q * (n - 1))."""
    found = sorted(numbers(events, value))
    return found[math.floor(q * (len(found) - 1))] if found else None


def coarsest(hops: Sequence[int], values: Sequence[float], error: float, keep: int) -> int:
    """How often pairs of a quantile's buckets become one until those of every hop are at most `keep`."""
    log_gamma = math.log((1 + error) / (1 - error))
    shift = 1 - math.ceil(math.log(1e-12) / log_gamma)
    buckets: dict[int, set[int]] = {}
    for hop, value in zip(hops, values, strict=True):
        size = math.ceil(math.log(abs(value)) / log_gamma) + shift
        buckets.setdefault(int(hop), set()).add(size if value > 0 else -size)
    level = 0
    while any(len({math.copysign(-(-abs(b) // 2**level), b) for b in held}) > keep for held in buckets.values()):
        level += 1
    return level


def vector_mean(events: Sequence[Event], value: str, dim: int) -> list[float]:
    """Mean of the vectors that are whole, [] where there is none."""
    held = [
        event[value]
        for event in events
        if event[value] is not None
        and len(event[value]) == dim
        and all(x is not None and math.isfinite(x) for x in event[value])
    ]
    return [math.fsum(column) / len(held) for column in zip(*held, strict=True)] if held else []
