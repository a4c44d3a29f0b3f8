"""Detection of drift in the losses, by River's ADWIN.

Source: Bifet, Gavalda (2007), "Learning from Time-Changing Data with Adaptive Windowing", SDM.
"""

from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Drift:
    """Detects a change in the mean of a stream of losses.

    Args:
        delta: approximate probability of a false alarm in a stream that does not change.

    The state does not survive a restart: a new detector needs a few hundred values before it can detect a change.
    """

    def __init__(self, delta: float = 0.002) -> None:
        from river.drift import ADWIN

        self._adwin: Any = ADWIN(delta=delta)
        self.alarms = 0

    def update(self, loss: float) -> bool:
        """Add the mean loss of one micro-batch; True if the mean of the stream has changed."""
        before = float(self._adwin.estimation)
        self._adwin.update(loss)
        if not self._adwin.drift_detected:
            return False
        self.alarms += 1
        log.warning("loss_drifted", before=before, after=float(self._adwin.estimation))
        return True
