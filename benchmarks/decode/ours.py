"""Ours: payloads to a checked frame, bad payloads told apart, by `codec_for(event)`."""

from collections.abc import Callable

import polars as pl

from benchmarks.decode.declaration import Engagement
from headrace.schemas import codec_for


def decoder(codec: str) -> Callable[[list[bytes]], pl.DataFrame]:
    """The decoder of `codec`."""
    wire = codec_for(Engagement, codec)

    def decode(payloads: list[bytes]) -> pl.DataFrame:
        decoded = wire.decode(payloads)
        assert not decoded.bad
        return decoded.frame

    return decode
