"""`headrace init`: copy the template of a project into a new folder."""

import re
import shutil
from pathlib import Path

import orjson

from headrace.errors import ConfigError
from headrace.project import FOLDERS
from headrace.settings import PREFIX, Settings

_TEMPLATE_PYPROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11,<3.14"
dependencies = ["headrace[all]"]

[project.optional-dependencies]
dev = ["pytest>=8"]

[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
packages = []  # the folders are put on the path by headrace, and are not installed

[tool.headrace]
# This folder is a Headrace project: the CLI finds it by this table and puts it on the path.

[tool.pytest.ini_options]
pythonpath = ["."]
testpaths = ["tests"]
filterwarnings = ["ignore::DeprecationWarning:ray.*"]
"""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.nbi", "*.nbc")
"""Files of a template that are not copied."""
_COMPOSE = {
    "REDIS_PASSWORD": "password of its Redis, in letters and digits",
    "TORCH_INDEX": "URL of the CPU wheels of PyTorch (pytorch.org/get-started shows it)",
}
"""Variables that docker-compose.yml needs and that are not settings."""
_TEMPLATE_DOCKERFILE = """\
FROM python:3.12-slim-bookworm
WORKDIR /srv/project
COPY . .
# CPU build of torch: --build-arg TORCH_INDEX=URL of PyTorch's CPU wheels (pytorch.org/get-started shows it)
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} 'headrace[serve]'
# What it writes is below /var/lib/headrace: a new volume there takes over the owner.
RUN useradd --create-home --uid 10001 headrace && install -d -o headrace -g headrace /var/lib/headrace
USER headrace
ENV HEADRACE_PROJECT=/srv/project NUMBA_CACHE_DIR=/var/lib/headrace/numba
"""


def template() -> Path:
    """The folder that `init` copies: the checkout from which this package runs, or the copy in the wheel."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "tests" / "project").is_dir():
        return checkout  # an editable install also sees headrace/_project if someone built in place; the source wins
    return Path(__file__).resolve().parents[1] / "_project"


def init(target: Path, *, bare: bool = False) -> list[Path]:
    """Copy the template into `target` as a new project; returns the files written.

    `bare`: one event, two views and a learner to fill in; otherwise the shop, with its log.

    Raises:
        ConfigError: `target` exists and is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not empty: name a new folder")
    source = template()
    if bare:
        shutil.copytree(source / "templates" / "bare", target, ignore=_LEFT_OUT, dirs_exist_ok=True)
    else:
        _copy_shop(source, target)
    readme = (source / "templates" / "README.md").read_text(encoding="utf-8")
    written = {
        "README.md": readme.replace("{name}", target.resolve().name),
        "pyproject.toml": _TEMPLATE_PYPROJECT.format(name=_project_name(target.resolve().name)),
        "Dockerfile": _TEMPLATE_DOCKERFILE,
        ".env.example": _env_example(),
        ".gitignore": ".headrace/\n.venv/\n.env\n__pycache__/\n*.egg-info/\n",
    }
    for name, text in written.items():
        (target / name).write_text(text, encoding="utf-8")
    return sorted(path for path in target.rglob("*") if path.is_file())


def _copy_shop(source: Path, target: Path) -> None:
    tests = source / "tests" / "project" if (source / "tests" / "project").is_dir() else source / "tests"
    for folder in (*FOLDERS, "data", "monitoring"):
        shutil.copytree(source / folder, target / folder, ignore=_LEFT_OUT)
    shutil.copytree(tests, target / "tests", ignore=_LEFT_OUT)
    shutil.copy2(source / "docker-compose.yml", target / "docker-compose.yml")


def _project_name(folder: str) -> str:
    """Convert a folder's name to a valid name of a Python distribution."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._") or "project"


def _env_example() -> str:
    """The text of a `.env` with every setting, its default and its meaning, commented out."""
    lines = ["# Copy this file to .env, and uncomment what is to differ. Variables of the environment come first.\n"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else field.default
        value = orjson.dumps(default).decode() if isinstance(default, dict | tuple | bool) else default
        lines.append(f"# {field.description}" if field.description else "#")
        lines.append(f"#{PREFIX}{name.upper()}={value}\n")
    lines += [f"# of docker-compose.yml: {meaning}\n#{name}=\n" for name, meaning in _COMPOSE.items()]
    return "\n".join(lines)
