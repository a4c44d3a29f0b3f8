"""Checkpoints: state written atomically to numbered folders, of which the newest are kept.

    <folder>/c00000007/   files of the state, and a manifest: facts as JSON, and the sha256 of every file
             c00000008/   the newest, which a restart loads
             .c00000009.<random>/   left by a crash: readers ignore it, and the next checkpoint deletes it

A checkpoint of an earlier release, in the folder that a file `LATEST` names, is read if there is no numbered one.
"""

import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson

from headrace.atomic import digests, open_folder
from headrace.errors import SnapshotError

MANIFEST = "checkpoint.json"


class Checkpoints:
    """Checkpoints in `folder`, the newest `keep` of them. One writer at a time."""

    def __init__(self, folder: str | Path, *, keep: int = 1, manifest: str = MANIFEST) -> None:
        self.folder = Path(folder)
        self._keep = keep
        self._manifest = manifest

    @contextmanager
    def write(self, facts: Mapping[str, Any]) -> Iterator[Path]:
        """Create an empty folder to fill, which becomes the newest checkpoint at the end of the block.

        `facts` are stored in its manifest.
        """
        for crashed in self.folder.glob(".c*"):
            shutil.rmtree(crashed, ignore_errors=True)
        with open_folder(self._path(max(self._numbers(), default=0) + 1)) as partial:
            yield partial
            manifest = {**facts, "files": digests(partial)}
            (partial / self._manifest).write_bytes(orjson.dumps(manifest))
        for old in sorted(self._numbers())[: -self._keep]:
            shutil.rmtree(self._path(old), ignore_errors=True)
        self._forget_earlier_release()

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Folder and facts of the newest checkpoint, after verifying all its files; None if there is none.

        Raises:
            SnapshotError: the checkpoint is damaged.
        """
        if number := max(self._numbers(), default=0):
            return self._path(number), self._facts(self._path(number))
        pointer = self.folder / "LATEST"
        return (self.folder / pointer.read_text(), {}) if pointer.is_file() else None

    def _path(self, number: int) -> Path:
        return self.folder / f"c{number:08d}"

    def _numbers(self) -> list[int]:
        return [int(path.name[1:]) for path in self.folder.glob("c????????") if path.name[1:].isdecimal()]

    def _facts(self, path: Path) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = orjson.loads((path / self._manifest).read_bytes())
            expected = facts["files"]
        except (OSError, orjson.JSONDecodeError, KeyError) as exc:
            raise SnapshotError(f"checkpoint {path.name} · {self._manifest}: unreadable: {exc}; {_fix(path)}") from exc
        present = {name: digest for name, digest in digests(path).items() if name != self._manifest}
        if damaged := sorted(name for name in {*expected, *present} if expected.get(name) != present.get(name)):
            raise SnapshotError(f"checkpoint {path.name} · {', '.join(damaged)}: not what was saved; {_fix(path)}")
        return facts

    def _forget_earlier_release(self) -> None:
        pointer = self.folder / "LATEST"
        if pointer.is_file():
            shutil.rmtree(self.folder / pointer.read_text(), ignore_errors=True)
            pointer.unlink()


class KeepsFiles(Protocol):
    """State in files to which checkpoints refer."""

    def not_written(self) -> None:
        """Report that the last captured checkpoint was not written: the files of the checkpoint before it must stay."""


@contextmanager
def keeping_the_last(folder: Path, *states: KeepsFiles) -> Iterator[None]:
    """Guard a save of `states` into `folder`: if it fails, the files of the checkpoint on disk must stay.

    Raises:
        SnapshotError: the checkpoint cannot be written. The previous one stays, and a later attempt may succeed.
    """
    try:
        yield
    except Exception as exc:
        for state in states:
            state.not_written()
        if not isinstance(exc, OSError):
            raise
        fix = "make room, and start again: the state that was saved before it is whole"
        if isinstance(exc, FileNotFoundError):
            fix = "it was deleted while a run used it; start again, or delete the whole folder first to begin anew"
        raise SnapshotError(f"checkpoint in {folder}: cannot be written: {exc}; {fix}") from exc


def _fix(path: Path) -> str:
    return f"restore {path}, or delete {path.parent} to begin anew"


class CheckpointThread:
    """A thread that writes checkpoints one after the other. Its methods are called by one thread.

    Args:
        checkpoints: where they are written.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-checkpoint")
        weakref.finalize(self, self._thread.shutdown, wait=False)
        self._last: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._last is not None and not self._last.done()

    def submit(self, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
        """Write a checkpoint: `fill` is called once, in the thread, with its empty folder.

        Raises:
            Exception: the error of the previous checkpoint.
        """
        self.wait()
        self._last = self._thread.submit(self._write, facts, fill)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            Exception: the error of this checkpoint.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def _write(self, facts: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
        with self.checkpoints.write(facts) as folder:
            fill(folder)
