"""Write the generated pages of docs/ anew: `make docs`. A test holds them equal to the code."""

import inspect
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
    return "\n".join(line.rstrip() for line in found.stdout.rstrip().splitlines()) + "\n"


def aggregations_page() -> str:
    """Every aggregation with its arguments, from its docstring."""
    lines = [
        "# Aggregations",
        "",
        "Declared in a `FeatureView`; each takes `where=`, an expression that picks events. A window's value at time t",
        "is made of the events with `floor(t, h) - W <= event_time < t`, h being the window's hop.",
        "",
    ]
    public = {name: value for name, value in vars(aggregations).items() if inspect.isclass(value)}
    for name, value in sorted(public.items()):
        parameters = ", ".join(str(parameter) for parameter in inspect.signature(value).parameters.values())
        lines += [
            f"## {name}",
            "",
            "```python",
            f"{name}({_plain(parameters)})",
            "```",
            "",
            inspect.getdoc(value) or "",
            "",
        ]
    return "\n".join(lines)


def _plain(parameters: str) -> str:
    """Parameters without their types: names and defaults."""
    names = []
    for part in parameters.split(", "):
        name, _, rest = part.partition(":")
        default = rest.rpartition(" = ")[2] if " = " in rest else ""
        names.append(f"{name}={default}" if default else name)
    return ", ".join(name for name in names if name.isidentifier() or "=" in name)


PAGES = {"cli.md": cli_page, "aggregations.md": aggregations_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
