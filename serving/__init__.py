"""This project's Ray Serve app. The machinery is in `headrace.serving`."""
