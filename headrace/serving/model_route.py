"""The routes rank and score, in plain ASGI because FastAPI's handling costs as much as the scoring.

body (within BODY_S) -> validated -> lane of small or of large requests -> bytes of the response
"""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from starlette.types import Receive, Scope, Send

from headrace.serving.answers import Answers, Reply
from headrace.serving.bodies.arrow import MEDIA_TYPE, parse_arrow
from headrace.serving.lanes import ClientGoneError, Job, Lane, OneCpu, until_gone
from headrace.serving.messages import ScoreRequest
from headrace.serving.queries import Query
from headrace.serving.refusals import Refusal, no_model, parse, refusal_of, send_json, send_refusal, too_large
from headrace.serving.report import Report
from headrace.serving.sockets import ARRIVED_S
from headrace.serving.swap import Swap
from headrace.telemetry import REQUEST_ID, new_request_id

BODY_S = 5.0
"""Seconds within which the body of a request must have arrived."""
TIMEOUT_HEADER = b"x-request-timeout-ms"
TIMEOUT_MS_MAX = 60_000
LARGE_CANDIDATES = 256
"""A request of more candidates goes to the lane of large requests: it takes some milliseconds."""
LARGE_BODY_BYTES = 16_384
"""A longer body is parsed in a thread, one body at a time: it takes a millisecond or more."""
CLIENT_GONE = 499
"""Status that counts requests whose client hung up."""

_ARROW = MEDIA_TYPE.encode()
Ask = TypeVar("Ask", bound=ScoreRequest)


class Lanes:
    """The lanes of small and of large requests, and the thread that parses large bodies.

    Args:
        answers: answers a batch.
        in_flight_max: requests that may wait or be in progress in each lane.
        one_cpu: the CPU of the small lane's thread; the large lane's thread may run on any.
    """

    def __init__(self, answers: Answers, in_flight_max: int, one_cpu: OneCpu) -> None:
        self.small = Lane("rank", answers.work, waiting_max=in_flight_max, rows_max=1_024, on_thread=one_cpu.add)
        self.parser = ThreadPoolExecutor(1, thread_name_prefix="headrace-parse")
        self.large = Lane("rank-large", answers.work, waiting_max=in_flight_max, rows_max=1, on_thread=one_cpu.free)

    def of(self, ask: ScoreRequest) -> Lane:
        """Return the lane of `ask`."""
        return self.large if len(ask.candidates) > LARGE_CANDIDATES else self.small

    def close(self) -> None:
        """Answer all submitted requests, then stop."""
        self.small.close()
        self.large.close()
        self.parser.shutdown()


class ModelRoute(Generic[Ask]):
    """ASGI application of one route.

    Args:
        name: of the route in metrics, "rank" or "score".
        model: class of the request bodies.
        timeout_s: deadline of requests without the header `X-Request-Timeout-Ms`.
    """

    def __init__(
        self,
        name: str,
        model: type[Ask],
        *,
        answers: Answers,
        lanes: Lanes,
        swap: Swap,
        report: Report,
        body_bytes_max: int,
        timeout_s: float,
    ) -> None:
        self.name = name
        self._model = model
        self._answers = answers
        self._lanes = lanes
        self._swap = swap
        self._report = report
        self._body_bytes_max = body_bytes_max
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and count one request, with an error if its handling fails."""
        started_s = time.perf_counter()
        version = None
        try:
            reply = await self._reply(scope, receive)
        except ClientGoneError:
            status = CLIENT_GONE
        except Exception as exc:  # noqa: BLE001  # the outermost handler
            refusal = refusal_of(exc, self.name)
            status = refusal.status
            await send_refusal(refusal, send)
        else:
            status, version = 200, reply.model_version
            await send_json(send, status, reply.body, {"x-model-version": str(version)}, reply.media_type)
        self._report.answered(self.name, status, time.perf_counter() - started_s, model_version=version)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why no request can be answered in time now; None if one can.

        The guard calls this before any work is done for a request: under overload most requests end here.
        """
        try:
            if self._swap.live is None:
                raise no_model()
            self._answers.require_store()
            self._lanes.small.require_room(_arrived_s(scope) + self._timeout_of(scope["headers"]))
        except Refusal as exc:
            return exc
        return None

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        timeout_s = self._timeout_of(scope["headers"])
        _refuse_encoded(scope["headers"])
        is_arrow, as_arrow = _names_arrow(scope["headers"])
        body = await self._body(scope, receive)
        if len(body) > LARGE_BODY_BYTES:
            ask, query = await self._parsed_in_thread(body, receive, is_arrow)
        else:
            ask, query = self._parsed(body, is_arrow)
        request_id = ask.request_id or REQUEST_ID.get() or new_request_id()
        REQUEST_ID.set(request_id)
        self._answers.require_version(ask)
        deadline_s = _arrived_s(scope) + timeout_s
        job = Job(self.name, ask, query, deadline_s, receive, request_id=request_id, as_arrow=as_arrow)
        reply: Reply = await self._lanes.of(ask).submit(job)
        return reply

    def _parsed(self, body: bytes, is_arrow: bool) -> tuple[Ask, Query]:
        ask = (parse_arrow if is_arrow else parse)(self._model, body)
        return ask, self._answers.query(ask)

    async def _parsed_in_thread(self, body: bytes, receive: Receive, is_arrow: bool) -> tuple[Ask, Query]:
        """Run `_parsed` in the parser's thread, unless the client hangs up before its turn."""
        parsing = asyncio.get_running_loop().run_in_executor(self._lanes.parser, self._parsed, body, is_arrow)
        gone = asyncio.ensure_future(until_gone(receive))
        await asyncio.wait((parsing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not parsing.done():
            parsing.cancel()
            raise ClientGoneError
        gone.cancel()
        return await parsing

    def _timeout_of(self, headers: list[tuple[bytes, bytes]]) -> float:
        for name, text in headers:
            if name == TIMEOUT_HEADER:
                value = text.strip()
                # Python converts at most 4,300 digits to a number.
                if not value.isdigit() or len(value) > 18 or not 1 <= int(value) <= TIMEOUT_MS_MAX:
                    detail = f"X-Request-Timeout-Ms is {value[:32].decode('latin-1')!r}"
                    raise Refusal(422, "invalid_request", detail, f"send whole milliseconds, 1 to {TIMEOUT_MS_MAX}")
                return int(value) / 1_000
        return self._timeout_s

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        parts: list[bytes] = []
        if ARRIVED_S in scope.get("state", {}):  # already whole: a timeout would cost more than receiving it
            await self._receive(receive, parts)
        else:
            try:
                async with asyncio.timeout(BODY_S):
                    await self._receive(receive, parts)
            except TimeoutError as exc:
                detail = f"{sum(map(len, parts))} bytes of the body came within {BODY_S} s"
                raise Refusal(408, "body_too_slow", detail, "send the whole body at once", "body") from exc
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _receive(self, receive: Receive, parts: list[bytes]) -> None:
        """Receive the whole body into `parts`."""
        size, is_whole = 0, False
        while not is_whole:
            message: Mapping[str, object] = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            assert isinstance(part, bytes)
            size += len(part)
            if size > self._body_bytes_max:  # a chunked body announces no length to the guard
                raise too_large(self._body_bytes_max)
            parts.append(part)
            is_whole = not message.get("more_body", False)


def _arrived_s(scope: Scope) -> float:
    """Return when the request reached this machine (`time.monotonic`), now if that is unknown or its body not whole."""
    arrived_s: float = scope.get("state", {}).get(ARRIVED_S, 0.0)
    return arrived_s or time.monotonic()


def _refuse_encoded(headers: list[tuple[bytes, bytes]]) -> None:
    """Raise Refusal 422 if the body is compressed, since it could expand to any amount of memory."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            detail = f"the body's Content-Encoding is {value[:32].decode('latin-1')!r}"
            raise Refusal(422, "invalid_request", detail, "send the body without Content-Encoding", "body")
        if name == b"transfer-encoding" and value.strip().lower() not in {b"chunked", b"identity"}:
            detail = f"the body's Transfer-Encoding is {value[:32].decode('latin-1')!r}"
            raise Refusal(422, "invalid_request", detail, "send the body as it is, or chunked", "body")


def _names_arrow(headers: list[tuple[bytes, bytes]]) -> tuple[bool, bool]:
    """Return whether the body is an Arrow stream, and whether the client accepts one."""
    is_arrow = as_arrow = False
    for name, value in headers:
        if name == b"content-type":
            is_arrow = is_arrow or _ARROW in value.lower()
        elif name == b"accept":
            as_arrow = as_arrow or _ARROW in value.lower()
    return is_arrow, as_arrow
