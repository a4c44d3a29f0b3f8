"""Write a file or a folder whole or not at all, and keep other processes from writing it.

    open_file(path)       <path>.new --write, fsync--> rename to <path> --> fsync of its folder
    open_folder(folder)   .<name>.<random>/ --write, fsync of every file--> rename to <folder> --> fsync of its parent

Invariant: whoever opens the final name sees complete content, also after a power cut, and what had that name before
stays until then. A crash in between leaves a name that no reader looks for; an exception leaves nothing. A file has one
writer at a time.

Source: rename(2) and fsync(2); a rename is durable only once the folder that holds the name is synced.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog

from headrace.errors import ServiceError

PARTIAL = ".new"
"""Suffix of a file that is being written. The next write replaces one that a crash left."""


log = structlog.get_logger(__name__)

_claims: dict[tuple[int, int], int] = {}
"""Device and inode of a folder -> its open file, which has the lock."""


def claim(folder: Path) -> bool:
    """Make this process the one that writes `folder` until it ends or releases it; whether it was not so before.

    The folder is created. The lock is on the folder itself and ends with the process, however that ends. A file system
    without such locks is used with a warning.

    Raises:
        ServiceError: another process writes it.
        OSError: it cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _identity(folder) in _claims:
        return False
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(file)
        raise ServiceError(
            f"{folder}: another process writes it; wait for its end or stop it, or name another folder"
        ) from exc
    except OSError as exc:
        os.close(file)
        log.warning("folder_not_locked", folder=str(folder), detail=str(exc), advice="let one process write it")
        return False
    _claims[_identity(folder)] = file
    return True


def release(folder: Path) -> None:
    """Give up the claim on a folder, so that another process may write it."""
    os.close(_claims.pop(_identity(folder)))


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; it replaces `path` at the end of the block, and is deleted if the block raises."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`."""
    with open_file(path) as file:
        file.write(data)


@contextmanager
def open_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes `folder` at the end of the block, and is deleted if the block raises.

    Missing parents are created.

    Raises:
        FileExistsError: `folder` exists and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = staging_folder(folder)
    try:
        yield partial
        publish_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def staging_folder(folder: Path) -> Path:
    """Create an empty folder beside `folder`, to be filled and given to `publish_folder`, or deleted."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()
    return partial


def publish_folder(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`, its sibling, once every file in it is on disk.

    Raises:
        FileExistsError: `folder` exists and is not empty.
    """
    for below, _, names in os.walk(partial):
        for name in names:
            sync(Path(below) / name)
        sync(Path(below))
    try:
        partial.rename(folder)
    except OSError as exc:
        if folder.exists():
            raise FileExistsError(f"{folder} exists; another writer uses its parent") from exc
        raise
    sync(folder.parent)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
