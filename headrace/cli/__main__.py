"""`python -m headrace.cli`: the `headrace` command."""

from headrace.cli import app

app()
