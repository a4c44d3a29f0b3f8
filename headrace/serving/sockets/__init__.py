"""Connections of the server without Ray: accepting them, and what uvicorn's own leave out."""

ARRIVED_S = "headrace.arrived_s"
"""Name in an ASGI scope's `state`: when the request's last byte reached this machine, of `time.monotonic`."""
NAMED_OUTSIDE = "headrace.named_outside"
"""Name in an ASGI scope's `state`, true where the server adds the request's `X-Request-Id` to the response itself."""
