"""This project's events: the messages of its topics. The machinery is in `headrace.schemas`."""
