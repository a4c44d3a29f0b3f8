"""Clocks in int64 microseconds UTC: wall time, a fixed instant, or event time that runs faster than wall time.

Reads, windows and label waits use a `Clock`; freshness and latency always use wall time. A clock has a text form, so
that several processes can share it: `wall`, `fixed:<event_us>`, `accelerated:<event_us>:<wall_us>:<speed>`,
`paced:<wall_us>:<path>` with the pace in a file, or `file:<path>` for the clock that a file currently describes.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


MOMENT_US_MAX = 2**61
"""Largest time since 1970 in microseconds, about 73,000 years."""
SPEED_MAX = 1e9
"""Largest speed in event seconds per wall second, about 30 years per second."""


class Clock(Protocol):
    """A source of the current event time."""

    def now_us(self) -> int:
        """Now, in microseconds since 1970 UTC."""
        ...


def wall_us() -> int:
    """Current wall time, in microseconds since 1970 UTC."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, slots=True)
class WallClock:
    """A clock that returns wall time."""

    def now_us(self) -> int:
        """Now, in microseconds since 1970 UTC."""
        return wall_us()

    def __str__(self) -> str:
        return "wall"


@dataclass(frozen=True, slots=True)
class FixedClock:
    """A clock that always returns the same instant.

    >>> FixedClock(5).now_us()
    5
    """

    event_us: int

    def now_us(self) -> int:
        """The fixed instant, in microseconds since 1970 UTC."""
        return self.event_us

    def __str__(self) -> str:
        return f"fixed:{self.event_us}"


@dataclass(frozen=True, slots=True)
class AcceleratedClock:
    """An event clock at `speed` times real time, which is `event_us` at wall time `started_wall_us`."""

    event_us: int
    started_wall_us: int
    speed: float

    def now_us(self) -> int:
        """Current event time, in microseconds since 1970 UTC."""
        return self.event_us + int((wall_us() - self.started_wall_us) * self.speed)

    def __str__(self) -> str:
        return f"accelerated:{self.event_us}:{self.started_wall_us}:{self.speed!r}"


@dataclass(frozen=True, slots=True, eq=False)
class PacedClock:
    """An event clock with a varying pace: quiet hours pass quickly, so that events flow evenly.

    `path` is a NumPy file of int64 (n, 2): microseconds of wall time since `started_wall_us`, ascending, and the event
    time at that moment. The clock is linear between these points and constant outside.
    """

    started_wall_us: int
    path: Path
    knots: "NDArray[np.int64]"

    @staticmethod
    def load(started_wall_us: int, path: Path) -> "PacedClock":
        """Load the pace from the file `path`.

        Raises:
            ConfigError: the file cannot be read, or does not contain a pace.
        """
        import numpy as np

        try:
            knots = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as exc:
            raise ConfigError(f"clock: pace {path}: {exc}") from exc
        if knots.dtype != np.int64 or knots.ndim != 2 or knots.shape[1:] != (2,) or not len(knots):
            raise ConfigError(f"clock: pace {path}: wanted int64 (n, 2), found {knots.dtype} {knots.shape}")
        return PacedClock(started_wall_us, path, knots)

    def now_us(self) -> int:
        """Current event time, in microseconds since 1970 UTC."""
        import numpy as np

        # Relative to the first knot: float64 holds microseconds of centuries exactly, but not any time since 1970.
        first_us = int(self.knots[0, 1])
        since = np.interp(wall_us() - self.started_wall_us, self.knots[:, 0], self.knots[:, 1] - first_us)
        return first_us + int(since)

    def __str__(self) -> str:
        return f"paced:{self.started_wall_us}:{self.path}"


class FileClock:
    """The clock that a file describes; replace the file atomically. Changes are seen within `LOOK_S` seconds."""

    LOOK_S = 0.1

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clock = self._read()
        self._looked_s = time.monotonic()

    def now_us(self) -> int:
        """Current time of the clock that the file describes.

        Raises:
            ConfigError: the file is missing, or does not describe a clock.
        """
        if time.monotonic() - self._looked_s >= self.LOOK_S:
            self._looked_s = time.monotonic()
            self._clock = self._read()
        return self._clock.now_us()

    def _read(self) -> Clock:
        try:
            text = self.path.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ConfigError(f"clock file {self.path}: {exc.strerror}") from exc
        if text.startswith("file:"):
            raise ConfigError(f"clock file {self.path}: holds {text!r}; a file cannot name another")
        return parse_clock(text)

    def __str__(self) -> str:
        return f"file:{self.path}"


def parse_clock(text: str) -> WallClock | FixedClock | AcceleratedClock | PacedClock | FileClock:
    """Parse the text form of a clock.

    Raises:
        ConfigError: `text` is none of the five forms, or names a file that is not valid.

    >>> str(parse_clock("fixed:7")), str(parse_clock("accelerated:1:2:3.0"))
    ('fixed:7', 'accelerated:1:2:3.0')
    """
    kind, *rest = text.split(":")
    try:
        match kind, rest:
            case "wall", []:
                return WallClock()
            case "fixed", [event_us]:
                return FixedClock(_moment(event_us))
            case "accelerated", [event_us, started_us, speed]:
                return AcceleratedClock(_moment(event_us), _moment(started_us), _speed(speed))
            case "paced", [started_us, *_]:
                return PacedClock.load(_moment(started_us), Path(text.removeprefix(f"paced:{started_us}:")))
            case "file", [_, *_]:
                return FileClock(Path(text.removeprefix("file:")))
    except ValueError as exc:
        raise ConfigError(f"clock {text!r}: {exc}") from exc
    raise ConfigError(
        f"clock {text!r}: write wall, fixed:<event_us>, accelerated:<event_us>:<wall_us>:<speed>, "
        "paced:<wall_us>:<path> or file:<path>"
    )


def _moment(text: str) -> int:
    """Microseconds since 1970, limited so that window arithmetic cannot overflow."""
    moment_us = int(text)
    if abs(moment_us) > MOMENT_US_MAX:
        raise ValueError(f"{text} is no time in microseconds: use at most {MOMENT_US_MAX}")
    return moment_us


def _speed(text: str) -> float:
    speed = float(text)
    if not 0 < speed <= SPEED_MAX:
        raise ValueError(f"speed {text}: use a number above 0, at most {SPEED_MAX:g}")
    return speed
