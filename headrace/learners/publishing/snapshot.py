"""Snapshot: one version of a learner on disk, written atomically.

    v00000042/
      model.safetensors   dense.<name>, intercept (K,), probe.inputs, probe.scores,
                          table.<table>.ids (n,) ascending, table.<table>.weights (n, W)
      manifest.json       version, learner, fingerprints, offsets, metrics, sha256 of each file and of itself

Invariant: a folder of this name holds exactly the bytes that were written, or `load` raises SnapshotError and says
what differs; `headrace.atomic` writes the folder. Nothing is pickled. The probe is a small batch with the learner's
predictions for it, so that a reader can verify its own predictions.

With `with_optimizer` the arrays include all training state: a checkpoint, not a version to publish.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from headrace.atomic import open_folder
from headrace.clock import wall_us
from headrace.errors import SnapshotError
from headrace.learners.inputs import Inputs
from headrace.learners.learner import Learner
from headrace.learners.online import OnlineLearner
from headrace.learners.publishing.tensor_file import read_verified, reading, tensors_of

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Metadata of a snapshot.

    Attributes:
        learner: name of the learner.
        model: repr of the model's declaration, which fixes all shapes.
        inputs: fingerprint of the input spec.
        views: view name -> layout fingerprint of the features that the learner reads.
        version: 1, 2, .. in its directory; 0 before it is published.
        parent: version that was live when the snapshot was built; 0 without one.
        offsets: source partition -> next offset to train on.
        trained_through_us: event time of the newest example trained on, microseconds.
        created_us: wall time when the snapshot was built, microseconds.
        steps: micro-batches trained on.
        with_optimizer: whether it is a training checkpoint.
        metrics: metrics when the snapshot was built, by name.
        files: file -> {"bytes", "sha256"}.
    """

    learner: str
    model: str
    inputs: str
    views: dict[str, str]
    version: int = 0
    parent: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    trained_through_us: int = 0
    created_us: int = 0
    steps: int = 0
    with_optimizer: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A manifest and its arrays, which are read-only."""

    manifest: Manifest
    arrays: Mapping[str, NDArray[Any]]

    @staticmethod
    def of(
        learner: OnlineLearner,
        *,
        parent: int = 0,
        offsets: Mapping[str, int] | None = None,
        metrics: Mapping[str, Any] | None = None,
        probe: Inputs | None = None,
        with_optimizer: bool = False,
    ) -> "Snapshot":
        """Copy the state of a learner; with `probe`, also the probe and the learner's predictions for it."""
        arrays = learner.state_dict(with_optimizer=with_optimizer)
        if probe is not None and len(probe):
            arrays["probe.inputs"] = np.frombuffer(probe.to_bytes(), dtype=np.uint8)
            arrays["probe.scores"] = learner.predict(probe)
        present = _present(learner, offsets or {}, with_optimizer=with_optimizer)
        return Snapshot(replace(present, parent=parent, metrics=dict(metrics or {})), arrays)

    @staticmethod
    def capture(learner: OnlineLearner, offsets: Mapping[str, int]) -> "Callable[[], Snapshot]":
        """Copy all training state of a learner; returns a function that builds the snapshot, in any thread."""
        manifest = _present(learner, offsets, with_optimizer=True)
        state = learner.capture()
        return lambda: Snapshot(manifest, state())

    def save(self, folder: str | Path) -> "Snapshot":
        """Write to `folder`, which must not exist; returns the snapshot with `files` in its manifest.

        Raises:
            SnapshotError: the folder exists.
        """
        folder = Path(folder)
        try:
            with open_folder(folder) as partial:
                return self.write(partial)
        except FileExistsError as exc:
            raise already_published(folder) from exc

    def write(self, folder: Path) -> "Snapshot":
        """Write the two files into the existing `folder`; returns the snapshot with `files` in its manifest."""
        data = save_tensors({name: np.asarray(array, order="C") for name, array in self.arrays.items()})
        (folder / MODEL).write_bytes(data)
        files = {MODEL: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        manifest = replace(self.manifest, files=files)
        plain = asdict(manifest)
        text = orjson.dumps(
            {**plain, "checksum": _checksum(plain)}, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
        )
        (folder / MANIFEST).write_bytes(text)
        return Snapshot(manifest, self.arrays)

    @staticmethod
    def load(folder: str | Path, learner: type[Learner] | None = None) -> "Snapshot":
        """Read and verify a snapshot; with `learner`, also that it belongs to that declaration.

        Raises:
            SnapshotError: a file is missing, truncated or changed, or learner, model, inputs or views differ.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if learner is not None:
            _check_belongs(manifest, learner, folder)
        if list(manifest.files) != [MODEL]:
            raise SnapshotError(f"snapshot {folder.name}: files {list(manifest.files)}, wanted {MODEL}")
        facts = manifest.files[MODEL]
        data = read_verified(folder / MODEL, facts["bytes"], facts["sha256"])
        return Snapshot(manifest, tensors_of(data, f"snapshot {folder.name} · {MODEL}"))

    def restore(self, learner: OnlineLearner) -> None:
        """Load the arrays into `learner`.

        Raises:
            SnapshotError: the snapshot belongs to another declaration.
        """
        _check_belongs(self.manifest, learner.learner, Path(f"v{self.manifest.version}"))
        learner.load_state_dict({name: array for name, array in self.arrays.items() if not name.startswith("probe.")})


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of the snapshot in `folder` and verify its checksum; the other files are not read.

    Raises:
        SnapshotError: it is missing or damaged.
    """
    folder = Path(folder)
    data = _read(folder / MANIFEST)
    try:
        plain = orjson.loads(data)
        checksum = plain.pop("checksum")
        if set(plain) != {each.name for each in fields(Manifest)} or plain["format"] != FORMAT:
            raise SnapshotError(f"snapshot {folder.name} · {MANIFEST}: of another format than {FORMAT}")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as exc:
        raise SnapshotError(f"snapshot {folder.name} · {MANIFEST}: unreadable: {exc}") from exc
    if checksum != _checksum(plain):
        raise SnapshotError(f"snapshot {folder.name} · {MANIFEST}: checksum differs from its content")
    return Manifest(**plain)


def already_published(folder: Path) -> SnapshotError:
    """The error for a snapshot whose `folder` exists already."""
    return SnapshotError(f"snapshot {folder.name}: exists; another writer uses this directory")


def probe_of(arrays: Mapping[str, NDArray[Any]], fingerprint: str) -> tuple[Inputs | None, NDArray[np.float32] | None]:
    """The probe batch of a snapshot and its predictions (n,) or (n, K); (None, None) without a probe."""
    if "probe.inputs" not in arrays:
        return None, None
    inputs = Inputs.from_bytes(arrays["probe.inputs"].tobytes(), fingerprint)
    return inputs, np.asarray(arrays["probe.scores"], np.float32)


def _present(learner: OnlineLearner, offsets: Mapping[str, int], *, with_optimizer: bool) -> Manifest:
    """The manifest of a learner's current state, without `files`."""
    return replace(
        _declared(learner.learner),
        offsets=dict(offsets),
        trained_through_us=learner.now_us,
        created_us=wall_us(),
        steps=learner.steps,
        with_optimizer=with_optimizer,
    )


def _declared(learner: type[Learner]) -> Manifest:
    return Manifest(learner.name, repr(learner.model), learner.inputs.fingerprint, learner.fingerprints())


def _check_belongs(manifest: Manifest, learner: type[Learner], folder: Path) -> None:
    wanted = _declared(learner)
    for name in ("learner", "model", "inputs"):
        if getattr(manifest, name) != getattr(wanted, name):
            raise SnapshotError(
                f"snapshot {folder.name} · {name}: {getattr(manifest, name)}, "
                f"learner {learner.name} has {getattr(wanted, name)}"
            )
    if manifest.views != wanted.views:
        changed = ", ".join(
            f"{view} {manifest.views.get(view, 'unknown')}, learner {learner.name} has {wanted.views.get(view, 'none')}"
            for view in sorted({*manifest.views, *wanted.views})
            if manifest.views.get(view) != wanted.views.get(view)
        )
        raise SnapshotError(f"snapshot {folder.name} · version of view {changed}")


def _read(path: Path) -> bytes:
    with reading(path):
        return path.read_bytes()


def _checksum(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)).hexdigest()
