"""A chart as SVG, written by hand: lines over a linear or logarithmic axis, each point labelled with its value."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
COLOURS = ("#1f5fa8", "#c2571a")
STYLE = "text{font:12px sans-serif;fill:#222}.t{font-size:14px;font-weight:bold}.g{stroke:#ddd}.v{font-size:10px}"


@dataclass(frozen=True, slots=True)
class Axis:
    """A range and its ticks; `log` needs positive ends."""

    label: str
    ticks: Sequence[float]
    log: bool = False

    def at(self, value: float) -> float:
        """Place between the first tick (0) and the last (1)."""
        scale: Callable[[float], float] = math.log10 if self.log else float
        low, high = scale(self.ticks[0]), scale(self.ticks[-1])
        return (scale(value) - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines by name, points (x, y), over two axes."""

    title: str
    x: Axis
    y: Axis
    lines: dict[str, list[tuple[float, float]]]


def ticks_up_to(highest: float) -> list[float]:
    """0 and five even steps of 1, 2 or 5 times a power of ten that reach `highest`."""
    power = 10 ** math.floor(math.log10(highest / 5))
    step = next(step for step in (1 * power, 2 * power, 5 * power, 10 * power) if step * 5 >= highest)
    return [step * index for index in range(6)]


def decades(lowest: float, highest: float) -> list[float]:
    """Powers of ten from at most `lowest` to at least `highest`, at least two."""
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def draw(path: Path, charts: Sequence[Chart]) -> None:
    """Write the charts side by side."""
    parts = [_chart(chart, index * WIDTH) for index, chart in enumerate(charts)]
    size = f'width="{WIDTH * len(charts)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(charts)} {HEIGHT}"'
    body = "\n".join(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _chart(chart: Chart, shift: float) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x_at(value: float) -> float:
        return round(LEFT + chart.x.at(value) * (right - LEFT), 1)

    def y_at(value: float) -> float:
        return round(bottom - chart.y.at(value) * (bottom - TOP), 1)

    out = [f'<g transform="translate({shift} 0)">', _text(WIDTH / 2, 20, chart.title, "middle", "t")]
    for tick in chart.x.ticks:
        out.append(f'<line class="g" x1="{x_at(tick)}" x2="{x_at(tick)}" y1="{TOP}" y2="{bottom}"/>')
        out.append(_text(x_at(tick), bottom + 16, _number(tick), "middle"))
    for tick in chart.y.ticks:
        out.append(f'<line class="g" x1="{LEFT}" x2="{right}" y1="{y_at(tick)}" y2="{y_at(tick)}"/>')
        out.append(_text(LEFT - 6, y_at(tick) + 4, _number(tick), "end"))
    out.append(_text((LEFT + right) / 2, HEIGHT - 12, chart.x.label, "middle"))
    middle = (TOP + bottom) / 2
    out.append(f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, chart.y.label, "middle")}</g>')
    for (name, points), colour in zip(chart.lines.items(), COLOURS, strict=False):
        places = " ".join(f"{x_at(x)},{y_at(y)}" for x, y in points)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{places}"/>')
        for x, y in points:
            out.append(f'<circle cx="{x_at(x)}" cy="{y_at(y)}" r="3" fill="{colour}"/>')
            out.append(_text(x_at(x), y_at(y) - 7, f"{y:,.0f}", "middle", "v"))
        name_y = TOP + 16 + 16 * list(chart.lines).index(name)
        out.append(f'<rect x="{LEFT + 8}" y="{name_y - 9}" width="10" height="10" fill="{colour}"/>')
        out.append(_text(LEFT + 24, name_y, name, "start"))
    return "\n".join([*out, "</g>"])


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{marked}>{escape(words)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 or value == 0 else f"{value:g}"
