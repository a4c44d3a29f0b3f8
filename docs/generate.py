"""Write the generated pages of docs/ anew: `make docs`. A test holds them equal to the code."""

import ast
import html
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrace.features import Windowed, aggregations
from headrace.features.aggregations import example

DOCS = Path(__file__).resolve().parent
ENGINE = DOCS.parent / "headrace"
METRIC_KINDS = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram"}
FLOWS = "materialize, train, archive"
ROLES_OF = {
    "telemetry": FLOWS,
    "schemas": FLOWS,
    "streams/watermark": "train",
    "streams/files/reading": "train",
    "streams": FLOWS,
    "features/failure_counts": "materialize, train, serve",
    "pipelines/materializer": "materialize",
    "pipelines/shard": "materialize, train",
    "pipelines/archiver": "archive",
    "pipelines": "train",
    "learners": "train",
    "serving": "serve",
}
"""Roles in whose processes the metrics of a module change; the first of these that the module's path begins with."""
TABLE = re.compile(r"(?<=<!-- metrics -->\n).*?(?=<!-- end of metrics -->)", re.DOTALL)


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
    listing = subprocess.run(command, check=True, capture_output=True, text=True, cwd=DOCS.parent)
    page = "\n".join(line.rstrip() for line in listing.stdout.rstrip().splitlines()) + "\n"
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
        "Declared in a `FeatureView`, see [views.md](views.md). A window's value at time t is made of the events with",
        "`floor(t, h) - W <= event_time < t`, h being the window's hop.",
        "",
        "Arguments that most of them have:",
        "",
        *_common_arguments(),
        "",
        "The examples read these events of one entity at 12:00:",
        "",
        "```text",
        *inspect.cleandoc(example.__doc__ or "").split("\n\n")[1].splitlines(),
        "```",
        "",
    ]
    for name in aggregations.__all__:
        value = getattr(aggregations, name)
        lines += [f"## {name}", "", "```python", f"{name}{_arguments(value)}", "```", "", _described(value), ""]
    return "\n".join(lines)


def _common_arguments() -> list[str]:
    """The arguments of `Windowed` as a list, from its docstring."""
    documented = (inspect.getdoc(Windowed) or "").split("Args:\n")[1]
    return [f"- `{name}`: {text}" for name, text in re.findall(r"^    (\w+): (.*)$", documented, re.MULTILINE)]


def _arguments(aggregation: type) -> str:
    """Its arguments without their types: names, defaults and what must be named."""
    signature = inspect.signature(aggregation)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def _described(aggregation: type) -> str:
    """Its docstring; a name such as <name>_<window>, which would be taken for HTML, as code, and its example."""
    words, _, shown = (inspect.getdoc(aggregation) or "").partition("\n\n>>> ")
    parts = re.split(r"(`[^`]*`)", words)
    text = "".join(part if part.startswith("`") else re.sub(r"\w*<\w+>[\w<>]*", r"`\g<0>`", part) for part in parts)
    return f"{text}\n\n```python\n>>> {shown}\n```" if shown else text


@dataclass(frozen=True, slots=True, order=True)
class Metric:
    """One metric as it is declared: a counter, gauge or histogram."""

    name: str
    kind: str
    labels: str
    roles: str
    help: str


def metrics() -> Iterator[Metric]:
    """Every metric of the engine, from the calls that declare them; nothing is imported."""
    for path in sorted(ENGINE.rglob("*.py")):
        module = path.relative_to(ENGINE).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            kind = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            first = getattr(node.args[0], "value", None) if node.args else None
            if kind not in METRIC_KINDS or not str(first).startswith("headrace_"):
                continue
            name, described, labels = (*map(ast.literal_eval, node.args), [])[:3]
            roles = next(of for prefix, of in ROLES_OF.items() if module.startswith(prefix))
            shown = ", ".join(f"`{label}`" for label in labels)
            yield Metric(name, METRIC_KINDS[kind], shown, roles, described.rstrip("."))


def operations_page() -> str:
    """The page as it is, with the table of metrics from the code."""
    lines = ["| metric | kind | labels | roles | meaning |", "|---|---|---|---|---|"]
    lines += [
        f"| `{each.name}` | {each.kind} | {each.labels} | {each.roles} | {each.help} |" for each in sorted(metrics())
    ]
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    return TABLE.sub(lambda _old: "\n" + "\n".join(lines) + "\n\n", page)


PAGES = {"cli.md": cli_page, "aggregations.md": aggregations_page, "operations.md": operations_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
