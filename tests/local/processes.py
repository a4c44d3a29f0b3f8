"""Whether processes still run."""

import subprocess
import time


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return status.stdout.strip()[:1] not in {"", "Z"}


def wait_until_gone(pid: int, seconds: float = 30.0) -> bool:
    """Whether the process ends within the time."""
    deadline_s = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not is_running(pid)
