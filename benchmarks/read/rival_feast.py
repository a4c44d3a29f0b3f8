"""Feast itself, where it is installed (pip install "feast[redis]"): its own write path and `get_online_features`.

The repository is a temporary folder: one view of the features, a file as the registry, Redis as the online store. What
is stored is the final value of each feature, as in rival_feast_layout; the registry is read once and not again.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Array, Float64, Int64

PROJECT = "shop_of_feast"
"""Not that of rival_feast_layout: the keys would be the same."""
BATCH = 2_000
_TYPES = {"int": Int64, "float": Float64, "list[int]": Array(Int64), "list[float]": Array(Float64)}


def open_store(folder: Path, url: str, view: str, entity_name: str, dtypes: Mapping[str, str]) -> FeatureStore:
    """A store with one view of the features of `dtypes`, feature -> as in `Feature.dtype`."""
    redis_at = urlsplit(url)
    store = FeatureStore(
        config=RepoConfig(
            project=PROJECT,
            provider="local",
            registry={"path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
            online_store={"type": "redis", "connection_string": f"{redis_at.hostname}:{redis_at.port}"},
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name=entity_name, join_keys=[entity_name], value_type=ValueType.INT64)
    features = FeatureView(
        name=view,
        entities=[entity],
        schema=[Field(name=entity_name, dtype=Int64), *(Field(name=f, dtype=_TYPES[t]) for f, t in dtypes.items())],
        source=FileSource(path=str(folder / "unread.parquet"), timestamp_field="event_timestamp"),
    )
    store.apply([entity, features])
    return store


def write(store: FeatureStore, view: str, rows: Sequence[Mapping], seconds: int) -> None:
    """Write rows, dicts of the entity and its features, as of `seconds`."""
    frame = pd.DataFrame(rows)
    frame["event_timestamp"] = datetime.fromtimestamp(seconds, UTC)
    for start in range(0, len(frame), BATCH):
        store.write_to_online_store(view, frame[start : start + BATCH])


def read(
    store: FeatureStore, view: str, entity_name: str, entities: Sequence[int], features: Sequence[str]
) -> dict[str, list]:
    """Values of `entities`: feature -> one value an entity."""
    found = store.get_online_features(
        features=[f"{view}:{feature}" for feature in features],
        entity_rows=[{entity_name: entity} for entity in entities],
    )
    return found.to_dict()
