"""A check, before the work begins, that its picture can be written. Drawing needs matplotlib."""

from pathlib import Path

from headrace.errors import ConfigError
from headrace.extras import require

SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Check that a picture can be written to `path`.

    Raises:
        ConfigError: its suffix is neither .png nor .svg, or its folder does not exist.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"plot {path}: write a name that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"plot {path}: there is no folder {path.parent}")
    require("matplotlib")
