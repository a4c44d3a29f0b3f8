"""What a benchmark prints before its figures: machine, versions of packages, command."""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterable


def describe(module: str, packages: Iterable[str], given: argparse.Namespace) -> None:
    """Print the conditions of a run of `module` with the options `given`; a package may be missing."""
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"command: python -m {module} {' '.join(sys.argv[1:])}  ({given})")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
