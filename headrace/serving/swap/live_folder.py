"""Whether the folder of the live version still holds the model that is live.

A version's number is not proof: a folder that is deleted by hand is followed by another model of the same number, from
a trainer that counts on from what it finds.
"""

from collections.abc import Hashable

import structlog

from headrace.serving.swap.models import LiveModel, Releases

log = structlog.get_logger(__name__)


class LiveFolder:
    """Compares the files of the live version with the live model once they have changed. For one thread at a time."""

    def __init__(self, releases: Releases) -> None:
        self._releases = releases
        self._version = 0
        self._compared: Hashable = None  # state of the files that were compared, or that the model came from
        self._last: Hashable = None  # their state at the last look
        self._holds = True

    def holds(self, live: LiveModel) -> bool:
        """Whether they are the live model's; what has changed is read when it was the same at two looks."""
        state = self._releases.state_of(live.version)
        if live.version != self._version:
            self._version, self._compared, self._last, self._holds = live.version, state, state, True
        is_settled, self._last = state == self._last, state
        if is_settled and state != self._compared:
            self._compared, self._holds = state, self._is_same(live)
        return self._holds

    def _is_same(self, live: LiveModel) -> bool:
        try:
            return self._releases.load(live.version).manifest == live.manifest
        except Exception as exc:  # noqa: BLE001  # damaged in whatever way: it is not what is live
            log.warning("live_folder_unreadable", model_version=live.version, reason=str(exc))
            return False
