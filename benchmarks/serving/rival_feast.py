"""The fan-out's rival: Feast 0.67 reads the features from Redis, and torch scores them naively.

    python rival_feast.py FOLDER REDIS_HOST:PORT HIDDEN...     run by `fan_out --feast`, in Feast's environment

FOLDER holds `item.parquet` and `customer.parquet`: a key, `event_time`, and what the model reads of each. Prints
"ready", then answers each line of stdin, a JSON object of `customer`, `items`, `k` and the index of `hidden`, with one
line of JSON: milliseconds of wall and CPU of the read (of two services), the assembly, the scores and the top-k.

What Feast offers for speed is on: `client: glide`, which reads outside the GIL, and `precompute_online`, one vector
an entity instead of a hash of features. A precomputed service has one entity only, so there are two, and its names must
be full ones.
"""

import json
import sys
import time
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Array, Float64, Int64, String
from feast.value_type import ValueType

DIM = 32
BUCKETS = 10_000
RECENT = "customer_view__recent"
TYPES = {"object": Array(String), "int64": Int64, "float64": Float64}


def store_of(folder: Path, address: str) -> tuple[FeatureStore, dict[str, FeatureService]]:
    """A store whose Redis has both tables, with a precomputed service for each."""
    store = FeatureStore(
        config=RepoConfig(
            project="rival",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "redis", "client": "glide", "connection_string": address},
            entity_key_serialization_version=3,
        )
    )
    services = {}
    for name, kind in (("item", ValueType.STRING), ("customer", ValueType.INT64)):
        frame = pd.read_parquet(folder / f"{name}.parquet")
        entity = Entity(name=name, join_keys=[name], value_type=kind)
        fields = [Field(name=each, dtype=TYPES[str(frame[each].dtype)]) for each in frame.columns[2:]]
        source = FileSource(path=str(folder / f"{name}.parquet"), timestamp_field="event_time")
        view = FeatureView(name=f"{name}_view", entities=[entity], schema=fields, source=source, ttl=timedelta(0))
        services[name] = FeatureService(name=f"{name}_service", features=[view], precompute_online=True)
        store.apply([entity, view, services[name]])
        store.write_to_online_store(f"{name}_view", df=frame)
        written = store.precompute_feature_service(f"{name}_service")
        assert written == len(frame), (name, written)
    return store, services


class Naive(torch.nn.Module):
    """A DeepFM of the same sizes, written plainly: a row of all features for each candidate, the customer repeated."""

    def __init__(self, numbers: int, hidden: list[int]) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(BUCKETS, DIM + 1) for _ in range(3))
        widths = [3 * DIM + numbers, *hidden, 1]
        layers = [(torch.nn.Linear(a, b), torch.nn.ReLU()) for a, b in pairwise(widths)]
        self.deep = torch.nn.Sequential(*[layer for pair in layers for layer in pair][:-1])

    def forward(self, ids: torch.Tensor, recent: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Scores (B,) of ids (B, 2), recent (B, N) and numbers (B, D)."""
        rows = [self.tables[i](ids[:, i]) for i in range(2)] + [self.tables[2](recent).mean(1)]
        vectors = torch.stack([row[:, :-1] for row in rows], 1)  # (B, 3, DIM)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)
        first = sum(row[:, -1] for row in rows)
        return torch.sigmoid(first + pairs + self.deep(torch.cat([vectors.flatten(1), numbers], 1))[:, 0])


def inputs_of(customer: dict[str, list], items: dict[str, list]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tensors of a request's candidates from what Feast returns; None is 0."""
    count = len(items["item"])
    names = [name for name in items if name != "item"]
    of_items = np.array([items[name] for name in names], np.float64).T  # None becomes NaN
    of_customer = [customer[name][0] for name in customer if name not in {"customer", RECENT}]
    numbers = np.hstack([of_items, np.tile(np.array(of_customer, np.float64), (count, 1))])
    recent = [hash(each) % BUCKETS for each in customer[RECENT][0] or [""]]
    ids = np.array([[hash(each) % BUCKETS, customer["customer"][0] % BUCKETS] for each in items["item"]])
    return (
        torch.from_numpy(ids),
        torch.tensor(recent).repeat(count, 1),
        torch.from_numpy(np.nan_to_num(numbers).astype(np.float32)),
    )


def main(folder: str, address: str, *hidden: str) -> None:
    torch.set_num_threads(1)
    store, services = store_of(Path(folder), address)
    models: list[Naive | None] = [None] * len(hidden)
    print("ready", flush=True)
    for line in sys.stdin:
        ask, moments = json.loads(line), [(time.perf_counter(), time.process_time())]
        customer, items = (
            store.get_online_features(features=services[name], entity_rows=rows, full_feature_names=True).to_dict()
            for name, rows in (
                ("customer", [{"customer": ask["customer"]}]),
                ("item", [{"item": item} for item in ask["items"]]),
            )
        )
        moments.append((time.perf_counter(), time.process_time()))
        ids, recent, numbers = inputs_of(customer, items)
        moments.append((time.perf_counter(), time.process_time()))
        if models[ask["hidden"]] is None:
            models[ask["hidden"]] = Naive(numbers.shape[1], [int(width) for width in hidden[ask["hidden"]].split("-")])
        with torch.inference_mode():
            scores = models[ask["hidden"]](ids, recent, numbers)
        moments.append((time.perf_counter(), time.process_time()))
        scores.topk(ask["k"])
        moments.append((time.perf_counter(), time.process_time()))
        stages = ("read", "assemble", "score", "top-k")
        spent = {
            name: [(now - then) * 1e3 for now, then in zip(after, before, strict=True)]
            for name, (before, after) in zip(stages, pairwise(moments), strict=True)
        }
        read = sum(value is not None for name, column in items.items() for value in column if name != "item")
        print(json.dumps({"ms": spent, "values": read}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
