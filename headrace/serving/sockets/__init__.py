"""Connections of the server without Ray: accepting them, and what uvicorn's own leave out."""

ARRIVED_S = "headrace.arrived_s"
"""Name in an ASGI scope's `state`: when the request's last byte reached this machine, of `time.monotonic`."""
