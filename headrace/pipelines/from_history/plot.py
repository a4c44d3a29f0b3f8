"""Plot of a training's curve: the metrics of recent examples over event time. Needs matplotlib."""

from pathlib import Path

import polars as pl

from headrace.pictures import check_plot
from headrace.pipelines.from_history.train import Training


def plot_curve(training: Training, path: Path) -> None:
    """Plot each metric of the curve over event time, one below another.

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
