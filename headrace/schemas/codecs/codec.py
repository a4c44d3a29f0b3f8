"""What a wire format does: many payloads to one frame, and a frame to payloads.

A codec never raises on bytes from outside: a payload that it cannot read becomes a `BadPayload`, and costs nobody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.schemas.rejects import Rejects


@dataclass(frozen=True, slots=True)
class BadPayload:
    """A payload that gave no row. `reason` is undecodable, wrong_type or missing; `index` counts payloads from 0."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch as columns.

    `frame` has the declared columns in order, (n_rows,); `payload_index` int64 (n_rows,) is each row's payload,
    ascending; `bad` are the payloads that gave no row, ascending.
    """

    frame: pl.DataFrame
    payload_index: NDArray[np.int64]
    bad: Sequence[BadPayload] = ()

    @property
    def rejects(self) -> Rejects[BadPayload]:
        """The bad payloads as columns."""
        return Rejects.of(BadPayload, self.bad)


class Codec(Protocol):
    """One wire format of one event."""

    content_type: str

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Payloads of a frame's rows: one a row, or one for all rows where the format holds many (Arrow)."""
        ...

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Rows of a batch of payloads; never raises on their content."""
        ...
