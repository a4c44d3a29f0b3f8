"""Models that sign their scores, so that an answer of two versions would show; their publisher is a process of its own.

    python -m benchmarks.serving.signed MODEL_DIR REDIS_URL COUNT SECONDS

publishes COUNT versions, one every SECONDS. Half of a version's sign is in its dense tensors, half in its table: every
score of version v is sigmoid(2 x (v mod 1,000) / 1,000), whatever the request and its features.
"""

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.serving.stage import ITEMS, ROOT, SEED
from headrace.client.load_connections import Connections
from headrace.features import hash_text
from headrace.learners import ModelDirectory, OnlineLearner, Snapshot

APART = 5e-5
"""Less than half of the difference between the scores of two versions that follow one another."""
SIGNS = 1_000


def sign_of(version: int) -> float:
    """What a version adds to a score's logit twice."""
    return (version % SIGNS) / SIGNS


class Signer:
    """Publishes signed versions of the retail project's learner."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        sys.path.insert(0, str(ROOT))
        from learners.next_item import NextItem

        self.directory = ModelDirectory(folder, redis_url)
        learner = OnlineLearner(NextItem, SEED)
        learner.tables["item"].admit(hash_text([f"item {i}" for i in range(ITEMS)]), 1)
        self._snapshot = Snapshot.of(learner)

    def publish(self) -> int:
        """Publish the next version, and return it."""
        version = (self.directory.latest() or 0) + 1
        arrays = {name: self._unsigned(name, array) for name, array in self._snapshot.arrays.items()}
        arrays["intercept"] = np.full(1, sign_of(version), np.float32)
        arrays["table.item.weights"][:, -1] = sign_of(version)  # of first order; those before it are the embedding
        published = self.directory.publish(Snapshot(self._snapshot.manifest, arrays))
        assert published == version, (published, version)
        return version

    def _unsigned(self, name: str, array: np.ndarray) -> np.ndarray:
        """A tensor that adds nothing to a score; ids, counts and scales stay."""
        stays = name in {"dense.sharpness", "numbers.var"} or not np.issubdtype(array.dtype, np.floating)
        return array if stays else np.zeros_like(array)


class Checked(Connections):
    """Connections that check the sign of every answer: `answers` and those of them that are `mixed`."""

    answers = 0
    mixed = 0

    async def send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """As of `Connections`, checked."""
        status, headers, body = await super().send(request)
        if status == 200:
            self.answers += 1
            self.mixed += not is_signed(orjson.loads(body), headers)
        return status, headers, body


def is_signed(answer: dict[str, Any], headers: dict[str, str]) -> bool:
    """Whether all of an answer is of the version that it names."""
    version = answer["model_version"]
    score = 1.0 / (1.0 + math.exp(-2.0 * sign_of(version)))
    is_one = all(abs(each["score"] - score) < APART for each in answer["ranked"])
    return is_one and headers.get("x-model-version") == str(version)


def main(folder: str, redis_url: str, count: str, seconds: str) -> None:
    signer = Signer(Path(folder), redis_url)
    due_s = time.monotonic()
    for _ in range(int(count)):
        due_s += float(seconds)
        time.sleep(max(due_s - time.monotonic(), 0.0))
        signer.publish()


if __name__ == "__main__":
    main(*sys.argv[1:])
