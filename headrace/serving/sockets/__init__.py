"""Connections: accepting them, and what uvicorn's own connections lack."""

ARRIVED_S = "headrace.arrived_s"
"""Key in an ASGI scope's `state`: when the request's last byte reached this machine (`time.monotonic`)."""
NAMED_OUTSIDE = "headrace.named_outside"
"""Key in an ASGI scope's `state`: true if the server itself adds the request's `X-Request-Id` to the response."""
