"""The examples that all contenders learn: a user, a thing and whether the user liked it, in order of time."""

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl

INSTALLED = "dataset_example/ml-100k/ml-100k.inter"
"""MovieLens 100K (Harper, Konstan 2015; non-commercial use) in the recbole package."""
LIKED = 4.0


def examples(ratings: Path | None, rows: int, seed: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Name of the data, ids (n, 2) of user and thing, labels (n,) 0 or 1.

    From `ratings`, or from recbole where it is installed; else `rows` examples of a planted model.
    """
    package = importlib.util.find_spec("recbole") if ratings is None else None
    if package is not None and package.origin is not None:
        ratings = Path(package.origin).parent / INSTALLED
    if ratings is not None:
        frame = pl.read_csv(ratings, separator="\t")
        frame = frame.rename({name: name.partition(":")[0] for name in frame.columns}).sort(
            "timestamp", maintain_order=True
        )
        labels = (frame["rating"] >= LIKED).to_numpy().astype(np.float32)
        return (
            f"{ratings.name}, rating >= {LIKED:g}",
            frame.select("user_id", "item_id").to_numpy().astype(np.int64),
            labels,
        )
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.zipf(1.3, rows) % 1_000, rng.zipf(1.3, rows) % 1_700], axis=1)
    user, thing = rng.normal(0, 0.7, 1_000), rng.normal(0, 0.9, 1_700)
    truth = 1 / (1 + np.exp(-(0.2 + user[ids[:, 0]] + thing[ids[:, 1]])))
    return f"planted logistic model, seed {seed}", ids, (rng.random(rows) < truth).astype(np.float32)
