"""This project's events: what flows through the topics. The machinery is in `headrace.schemas`."""
