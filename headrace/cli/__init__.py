"""The `headrace` command."""

from headrace.cli import commands as commands
from headrace.cli.console import app as app
