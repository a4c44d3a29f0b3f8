"""Picture of a training's curve: the figures of the recent examples over event time. It needs matplotlib."""

from pathlib import Path

import polars as pl

from headrace.errors import ConfigError
from headrace.extras import require
from headrace.pipelines.from_history.train import Training

SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Check that a picture can be written to `path`.

    Raises:
        ConfigError: its suffix is neither .png nor .svg, or its folder is not there.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"plot {path}: write a name that ends in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"plot {path}: there is no folder {path.parent}")
    require("matplotlib")


def plot_curve(training: Training, path: Path) -> None:
    """Draw each figure of the curve over event time, one below the other.

    Raises:
        ConfigError, MissingExtraError: as `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    curve = training.curve
    names = [name for name in curve.columns if curve.schema[name] == pl.Float64]
    figure = Figure(figsize=(8, 2.2 * len(names) + 0.6), layout="constrained")
    times = curve["event_time"].to_numpy()
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names, strict=True):
        axes.plot(times, curve[name].to_numpy(), marker="." if curve.height < 50 else None)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{training.learner}: figures of recent examples, each predicted before it was learned")
    figure.autofmt_xdate()
    figure.savefig(path)
