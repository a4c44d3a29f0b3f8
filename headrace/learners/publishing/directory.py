"""ModelDirectory: the published versions of one learner, and notices of new versions.

    <path>/v00000041/  v00000042/   .v00000043.4f1a09bc/       Redis stream: {name, version, path, created}

The folder is authoritative; a notice only wakes followers. So a lost notice costs one poll interval, and followers work
without Redis. Versions increase by one and are never reused; a rollback publishes old content as a new version. A
directory has one writer: a second writer fails at the rename.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import Counter, Gauge

from headrace.atomic import publish_folder, staging_folder
from headrace.clock import wall_us
from headrace.errors import SnapshotError, StoreError
from headrace.features.store.link import RedisLink
from headrace.learners.learner import Learner
from headrace.learners.publishing.snapshot import Manifest, Snapshot, already_published, read_manifest
from headrace.schemas.fault_log import FaultLog

STREAM = "hr:models"
NOTICES_MAX = 1_000  # approximate number of entries that the stream keeps
POLL_S = 0.2  # interval of checks of the folder without Redis
BLOCK_S = 0.5  # longest wait for a notice in one Redis call
TIMEOUT_S = 1.0  # per Redis call, which may take twice this; notices must not delay training for longer
PAUSE_S = 5.0  # pause without Redis calls after a failed call
KEEP = 5
LEFT_S = 3_600.0  # age from which a staged, unpublished folder counts as left by a killed writer

PUBLISHED = Counter("headrace_models_published_total", "Snapshots published.")
NOTICE_FAILED = Counter("headrace_model_notices_failed_total", "Notices that Redis did not take.")
VERSION = Gauge("headrace_published_model_version", "Newest version this process published.")

log = structlog.get_logger(__name__)

_NAME = re.compile(r"v(0[0-9]{7}|[1-9][0-9]{7,17})")  # at most 18 digits, which fit a 64-bit integer
_STAGED = re.compile(r"\.v[0-9]{8,18}\.[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Staged:
    """A snapshot that is written and flushed but not visible. Check it, then pass it to `publish` or `discard`."""

    folder: Path
    snapshot: Snapshot


class ModelDirectory:
    """Versions of one learner's snapshots in a folder.

    Args:
        path: the folder; created if missing.
        redis_url: Redis for notices; None: followers poll the folder.
        stream: name of the Redis stream.
        keep: number of newest versions to keep.

    Raises:
        StoreError: `redis_url` is not a valid Redis URL.
        SnapshotError: `path` is no folder, and cannot be created.
    """

    def __init__(
        self, path: str | Path, redis_url: str | None = None, stream: str = STREAM, *, keep: int = KEEP
    ) -> None:
        self.notices = Notices(RedisLink(redis_url, timeout_s=TIMEOUT_S), stream) if redis_url else None
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise SnapshotError(
                f"folder of models: {exc.strerror or 'cannot be created'}: {self.path}; name another one, as in "
                "HEADRACE_MODEL_DIR, or let this user create it"
            ) from exc
        self.stream = stream
        self._keep = max(keep, 1)
        self._published = 0  # newest version published by this object; never reused, even if the folder is emptied

    def versions(self) -> list[int]:
        """Published versions, ascending; empty if the folder is missing. Other names in the folder are ignored."""
        try:
            matches = [_NAME.fullmatch(path.name) for path in self.path.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in matches if match)

    def latest(self) -> int | None:
        """The newest published version, None before the first."""
        return max(self.versions(), default=None)

    def folder(self, version: int) -> Path:
        """Folder of `version`, whether it exists or not."""
        return self.path / f"v{version:08d}"

    def load(self, version: int, learner: type[Learner] | None = None) -> Snapshot:
        """Load and verify the snapshot `version`.

        Raises:
            SnapshotError: it is missing, damaged, of another learner, or its manifest names another version.
        """
        folder, versions = self.folder(version), self.versions()
        if version not in versions:
            raise SnapshotError(f"models {self.path.name}: no version {version}; there are {versions}")
        snapshot = Snapshot.load(folder, learner)
        if snapshot.manifest.version != version:
            raise SnapshotError(
                f"models {self.path.name} · {folder.name}: its manifest says version {snapshot.manifest.version}; "
                "the folder was renamed or copied: publish its content as a new version with rollback"
            )
        return snapshot

    def manifest(self, version: int) -> Manifest:
        """Read the manifest of `version` without its other files.

        Raises:
            SnapshotError: it is missing or damaged.
        """
        return read_manifest(self.folder(version))

    def stage(self, snapshot: Snapshot) -> Staged:
        """Write `snapshot` as the next version without publishing it; returns it as read back and verified.

        Raises:
            SnapshotError: the directory belongs to another learner, cannot be written, or what was read back differs.
        """
        name = self._learner()
        if name not in {None, snapshot.manifest.learner}:
            raise SnapshotError(f"models {self.path.name}: of learner {name!r}, not {snapshot.manifest.learner!r}")
        version = max(self.latest() or 0, self._published) + 1
        folder = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            folder = staging_folder(self.folder(version))
            replace(snapshot, manifest=replace(snapshot.manifest, version=version)).write(folder)
            return Staged(folder, Snapshot.load(folder))
        except BaseException as exc:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(exc, OSError):
                raise self._unwritable(version, exc) from exc
            raise

    def discard(self, staged: Staged) -> None:
        """Delete a staged snapshot."""
        shutil.rmtree(staged.folder, ignore_errors=True)

    def publish(self, snapshot: Snapshot | Staged) -> int:
        """Publish a snapshot as the newest version, delete versions beyond `keep`, send a notice; returns the version.

        Raises:
            SnapshotError: another writer published meanwhile, or the directory belongs to another learner or cannot be
                written.
        """
        staged = self.stage(snapshot) if isinstance(snapshot, Snapshot) else snapshot
        version = staged.snapshot.manifest.version
        try:
            publish_folder(staged.folder, self.folder(version))
        except FileExistsError as exc:
            raise already_published(self.folder(version)) from exc
        except OSError as exc:
            raise self._unwritable(version, exc) from exc
        finally:
            self.discard(staged)
        self._published = version
        self._delete_old()
        PUBLISHED.inc()
        VERSION.set(version)
        self._notice(staged.snapshot.manifest)
        log.info("model_published", model_version=version, learner=staged.snapshot.manifest.learner)
        return version

    def rollback(self, version: int) -> int:
        """Publish the content of `version` as a new version; returns the new version.

        Raises:
            SnapshotError: `version` is missing or damaged.
        """
        old = self.load(version)
        return self.publish(
            replace(old, manifest=replace(old.manifest, parent=self.latest() or 0, created_us=wall_us()))
        )

    def is_rollback(self, version: int) -> bool:
        """Whether `version` has the content of an earlier version that is still there."""
        try:
            files = self.manifest(version).files
            return any(self.manifest(earlier).files == files for earlier in self.versions() if earlier < version)
        except SnapshotError as exc:
            log.warning("model_not_readable", model_version=version, reason=str(exc))
            return False

    def follow(self, block_ms: int = 1_000, stop: Callable[[], bool] = lambda: False) -> Iterator[int]:
        """Yield the newest version whenever it changes; calls `stop` at least every `block_ms` milliseconds."""
        follower = Follower(self)
        while not stop():
            version = follower.poll(block_ms)
            if version is not None:
                yield version

    def stop_notices(self) -> None:
        """Stop sending notices; readers check the directory every `POLL_S` seconds."""
        self.notices = None

    def _learner(self) -> str | None:
        """Name of the learner of these versions, from the newest readable manifest; None if none is readable."""
        for version in reversed(self.versions()):
            try:
                return self.manifest(version).learner
            except (SnapshotError, OSError) as exc:
                log.warning("model_not_readable", model_version=version, reason=str(exc))
        return None

    def _unwritable(self, version: int, exc: OSError) -> SnapshotError:
        return SnapshotError(
            f"models {self.path} · {self.folder(version).name}: cannot be written: {exc.strerror or exc}; "
            "make room, or let this user write there"
        )

    def _delete_old(self) -> None:
        """Delete versions beyond `keep`, and staged folders left by killed writers."""
        old = [self.folder(version) for version in self.versions()[: -self._keep]]
        old += [path for path in self.path.iterdir() if _STAGED.fullmatch(path.name) and _age_s(path) > LEFT_S]
        for path in old:
            try:
                shutil.rmtree(path)
            except OSError as exc:
                log.warning("model_not_deleted", folder=path.name, reason=str(exc))

    def _notice(self, manifest: Manifest) -> None:
        if self.notices is None:
            return
        notice: dict[Any, Any] = {
            "name": manifest.learner,
            "version": manifest.version,
            "path": str(self.folder(manifest.version)),
            "created": manifest.created_us,
        }
        if not self.notices.send(notice):
            NOTICE_FAILED.inc()


class Notices:
    """The stream of notices. Thread-safe.

    After a failed call it makes no call for `PAUSE_S`, so that a hanging Redis does not block its callers each time.
    """

    def __init__(self, link: RedisLink, stream: str) -> None:
        self._link = link
        self._stream = stream
        self._paused_until_s = 0.0
        self._fault = FaultLog("model_notices_again")

    def send(self, notice: dict[Any, Any]) -> bool:
        """Append `notice`; returns False if Redis did not accept it."""
        sent = self._ask(
            "sending a notice",
            lambda redis: redis.xadd(self._stream, notice, maxlen=NOTICES_MAX, approximate=True),
        )
        return sent is not None

    def newest_id(self) -> Any:
        """Id of the newest notice. Reading from "$" would lose notices that arrive between two reads."""
        newest = self._ask("reading the newest notice", lambda redis: redis.xrevrange(self._stream, count=1))
        return newest[0][0] if newest else "0-0"

    def wait(self, last_id: Any, timeout_s: float) -> Any:
        """Wait for notices after `last_id`; returns the newest id, `last_id` if none came, None if Redis fails."""
        block_ms = max(int(min(timeout_s, BLOCK_S) * 1_000), 1)
        notices = self._ask("waiting for a notice", lambda redis: redis.xread({self._stream: last_id}, block=block_ms))
        if notices is None:
            return None
        return notices[0][1][-1][0] if notices else last_id

    def _ask(self, doing: str, ask: Callable[[Any], Any]) -> Any:
        """Return the answer of Redis, [] for an empty one, None if Redis fails or calls are paused."""
        if time.monotonic() < self._paused_until_s:
            return None
        try:
            with self._link.errors(doing):
                answer = ask(self._link.client)
        except StoreError as exc:
            self._paused_until_s = time.monotonic() + PAUSE_S
            self._fault.failed("model_notices_paused", str(exc), seconds=PAUSE_S)
            return None
        self._fault.succeeded()
        return [] if answer is None else answer


class Follower:
    """A reader's position in the sequence of versions. Not thread-safe."""

    def __init__(self, directory: ModelDirectory) -> None:
        self.seen = 0
        self._directory = directory
        self._last_id: Any = "0-0" if directory.notices is None else directory.notices.newest_id()
        self._idle = threading.Event()

    def poll(self, block_ms: int = 0) -> int | None:
        """Return the newest version if it is new, waiting up to `block_ms` milliseconds for one; otherwise None."""
        deadline = time.monotonic() + block_ms / 1_000
        while True:
            version = self._directory.latest()
            if version is not None and version > self.seen:
                self.seen = version
                return version
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self.wait(left_s)

    def wait(self, timeout_s: float) -> None:
        """Wait for a notice, at most `timeout_s` seconds, and at most POLL_S if Redis is unreachable."""
        notices = self._directory.notices
        last_id = None if notices is None else notices.wait(self._last_id, timeout_s)
        if last_id is None:
            self._idle.wait(min(timeout_s, POLL_S))
        else:
            self._last_id = last_id


def _age_s(path: Path) -> float:
    """Seconds since the last change of a folder; 0.0 if it has vanished."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
