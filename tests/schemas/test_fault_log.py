"""Lines of a fault that lasts."""

import threading
import time

from structlog.testing import capture_logs

from headrace.schemas.fault_log import REASONS_MAX, FaultLog


def test_a_fault_is_a_line_for_each_reason_some_at_growing_intervals_and_its_end():
    """
    a a a b a ... | a again after 50 ms, 100 ms, 200 ms | quiet | over
    """
    fault = FaultLog("over", again_s=0.05, quiet_s=0.1)
    with capture_logs() as logs:
        fault.succeeded()
        assert logs == []
        for reason in "aaba":
            fault.failed("away", reason, route="rank")
        assert [(line["reason"], line["times"], line["route"]) for line in logs] == [("a", 1, "rank"), ("b", 2, "rank")]
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.5:
            fault.failed("away", "a")
            time.sleep(0.001)
        assert 3 <= len(logs) <= 5
        assert sum(line["times"] for line in logs) > 100
        fault.succeeded()
        assert fault.is_on  # a success between failures is not the end
        time.sleep(0.12)
        fault.succeeded()
        fault.succeeded()
    assert [line["event"] for line in logs[-2:]] == ["away", "over"]
    assert logs[-1]["seconds"] >= 0.6


def test_a_fault_that_comes_again_is_said_anew():
    """Same reason, after its end: a line."""
    fault = FaultLog("over", quiet_s=0.0)
    with capture_logs() as logs:
        for _ in range(2):
            fault.failed("away", "a", level="error")
            fault.succeeded()
    assert [(line["event"], line["log_level"]) for line in logs] == [("away", "error"), ("over", "info")] * 2


def test_reasons_that_always_differ_do_not_flood():
    """As with a time in each of them, from several threads."""
    fault = FaultLog("over")

    def fail(number: int) -> None:
        for i in range(100):
            fault.failed("away", f"{number} {i}")

    with capture_logs() as logs:
        threads = [threading.Thread(target=fail, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(logs) == REASONS_MAX
