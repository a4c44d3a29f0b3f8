"""Write the generated pages of docs/ anew: `make docs`. A test holds them equal to the code."""

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path

from headrace.features import aggregations

DOCS = Path(__file__).resolve().parent


def cli_page() -> str:
    """Every command with its options, from the command line's own declarations."""
    command = [
        sys.executable,
        "-m",
        "typer",
        "headrace.cli",
        "utils",
        "docs",
        "--name",
        "headrace",
        "--title",
        "Commands",
    ]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=DOCS.parent)
    page = "\n".join(line.rstrip() for line in found.stdout.rstrip().splitlines()) + "\n"
    return _with_whole_summaries(html.unescape(page))


def _with_whole_summaries(page: str) -> str:
    """Lists of commands with the first line of each command's own section, of which Typer shows 45 characters."""
    firsts = dict(re.findall(r"^##+ `headrace (.*)`\n\n(.*)$", page, re.MULTILINE))
    group, lines = "", []
    for line in page.split("\n"):
        heading = re.fullmatch(r"##+ `headrace (.*)`", line)
        group = f"{heading[1]} " if heading else group
        listed = re.fullmatch(r"\* `([a-z]+)`: .*", line)
        lines.append(f"* `{listed[1]}`: {firsts[group + listed[1]]}" if listed else line)
    return "\n".join(lines)


def aggregations_page() -> str:
    """Every aggregation with its arguments, from its docstring."""
    lines = [
        "# Aggregations",
        "",
        "Declared in a `FeatureView`, see [views.md](views.md). All but `Ratio` take `where=`, an expression that",
        "picks events. A window's value at time t is made of the events with `floor(t, h) - W <= event_time < t`, h",
        "being the window's hop.",
        "",
    ]
    public = {name: value for name, value in vars(aggregations).items() if inspect.isclass(value)}
    for name, value in sorted(public.items()):
        lines += [f"## {name}", "", "```python", f"{name}{_arguments(value)}", "```", "", _described(value), ""]
    return "\n".join(lines)


def _arguments(aggregation: type) -> str:
    """Its arguments without their types: names, defaults and what must be named."""
    signature = inspect.signature(aggregation)
    plain = [found.replace(annotation=inspect.Parameter.empty) for found in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _described(aggregation: type) -> str:
    """Its docstring; a name such as <name>_<window>, which would be taken for HTML, as code."""
    parts = re.split(r"(`[^`]*`)", inspect.getdoc(aggregation) or "")
    return "".join(part if part.startswith("`") else re.sub(r"\w*<\w+>[\w<>]*", r"`\g<0>`", part) for part in parts)


PAGES = {"cli.md": cli_page, "aggregations.md": aggregations_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
