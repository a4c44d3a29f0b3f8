"""The interface of a wire format: decode many payloads to one frame, and encode a frame to payloads.

A codec never raises on external bytes: a payload that it cannot read becomes a `BadPayload` and does not affect others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.schemas.rejects import BadPayload, Rejects


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded batch as columns.

    `frame` has the declared columns in order, (n_rows,); `payload_index` int64 (n_rows,) is the index of each row's
    payload, ascending; `bad` are the payloads that could not be decoded, ascending.
    """

    frame: pl.DataFrame
    payload_index: NDArray[np.int64]
    bad: Sequence[BadPayload] = ()

    @property
    def rejects(self) -> Rejects[BadPayload]:
        """The bad payloads as columns."""
        return Rejects.of(BadPayload, self.bad)


class Codec(Protocol):
    """A codec for one event in one wire format."""

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Encode a frame: one payload per row, or one for all rows if the format holds many (Arrow)."""
        ...

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Decode a batch of payloads; never raises on their content."""
        ...
