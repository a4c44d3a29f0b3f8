"""A closed-loop load generator of its own process: `python load.py PORT PATH CALLERS SECONDS BODY...`.

Each caller holds one connection and sends its next request when the last is answered; bodies are taken in turn. Prints
one JSON line: answers a second by status, latency percentiles in ms of those with status 200, and CPU seconds used.
Plain protocols over sockets, so that the generator costs a fraction of what it measures.
"""

import asyncio
import json
import sys
import time
from collections import Counter


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, requests: list[bytes], first: int, tally: "Tally") -> None:
        self._requests = requests
        self._next = first
        self._tally = tally
        self._buffer = b""

    def connection_made(self, transport) -> None:
        """Called once, when the connection stands."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Called with each piece of an answer."""
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        at = head.index(b"content-length:") + 15
        body_end = head_end + 4 + int(head[at : head.find(b"\r", at) if b"\r" in head[at:] else None])
        if len(self._buffer) < body_end:
            return
        self._buffer = self._buffer[body_end:]
        self._tally.add(int(head[9:12]), time.perf_counter() - self._sent_s)
        if time.perf_counter() < self._tally.end_s:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, _exc) -> None:
        """Called once, after the last answer or when the server hung up."""
        self._tally.left -= 1
        if not self._tally.left:
            self._tally.done.set_result(None)

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1


class Tally:
    """Answers since the warm-up's end."""

    def __init__(self, callers: int, begin_s: float, end_s: float) -> None:
        self.begin_s, self.end_s, self.left = begin_s, end_s, callers
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.done = asyncio.get_running_loop().create_future()

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        if self.begin_s <= time.perf_counter() < self.end_s:
            self.statuses[status] += 1
            if status == 200:
                self.seconds.append(seconds)


async def play(port: int, path: str, callers: int, seconds: float, bodies: list[bytes]) -> dict[str, object]:
    head = f"{'POST' if bodies else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    requests = [head + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies or [b""]]
    loop, now_s = asyncio.get_running_loop(), time.perf_counter()
    warm_s = min(1.0, seconds / 4)
    tally = Tally(callers, now_s + warm_s, now_s + warm_s + seconds)
    for i in range(callers):
        await loop.create_connection(lambda i=i: Caller(requests, i * 7, tally), "127.0.0.1", port)
    await tally.done
    ordered = sorted(tally.seconds)

    def ms(share: float) -> float | None:
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1e3, 2) if ordered else None

    return {
        "per_s": {str(status): round(count / seconds, 1) for status, count in sorted(tally.statuses.items())},
        "ms": {"p50": ms(0.5), "p99": ms(0.99), "max": ms(1.0)},
        "cpu_s": round(time.process_time(), 2),
    }


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    port, path, callers, seconds, *bodies = sys.argv[1:]
    result = asyncio.run(play(int(port), path, int(callers), float(seconds), [body.encode() for body in bodies]))
    print(json.dumps(result))
