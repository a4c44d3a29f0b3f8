"""The picture of AUC by publish interval. It needs matplotlib."""

from pathlib import Path


def draw(path: Path, by_interval: dict[str, float], rivals: dict[str, float]) -> None:
    """Write the picture: a point an interval, a dashed line for each rival. Equal figures give equal bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "freshness", "svg.fonttype": "none", "font.size": 11}):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        places = range(len(by_interval))
        axes.plot(places, list(by_interval.values()), marker="o", color="#1f5fa8", label="Headrace")
        for place, area in zip(places, by_interval.values(), strict=True):
            axes.annotate(f"{area:.3f}", (place, area), (0, 7), textcoords="offset points", ha="center")
        for name, area in rivals.items():
            axes.axhline(area, linestyle="--", color="#c2571a", label=f"{name}, live: {area:.3f}")
        axes.set_xticks(places, list(by_interval))
        axes.set_xlabel("model published every")
        axes.set_ylabel("AUC of the next clicks")
        axes.margins(y=0.15)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
