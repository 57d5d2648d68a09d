"""Bars over time as an SVG drawing. In: the hours' numbers. Out: rectangles and labels for a template to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import floor, log10

WIDTH, HEIGHT = 480, 170
LEFT, TOP, BOTTOM = 48, 8, 24
LABEL = 40  # a day's name needs so much


@dataclass(frozen=True)
class Bar:
    """One rectangle; ``kind`` is its CSS class, ``title`` what a pointer on it shows."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str


@dataclass(frozen=True)
class Label:
    """A text on the drawing."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing of WIDTH by HEIGHT."""

    bars: tuple[Bar, ...]
    days: tuple[Label, ...]
    levels: tuple[Label, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT


def draw(
    times: Sequence[datetime], series: Mapping[str, Sequence[float]], show: Callable[[float], str] = "{:,.0f}".format
) -> Chart:
    """Stacked bars: for each time one of each series, the first at the bottom. ``show`` writes a number."""
    step = (WIDTH - LEFT) / max(1, len(times))
    top = _round_up(max((sum(values) for values in zip(*series.values(), strict=True)), default=0))
    scale = (HEIGHT - TOP - BOTTOM) / top
    bars = []
    for index, at in enumerate(times):
        floor_y = float(HEIGHT - BOTTOM)
        for kind, values in series.items():
            if not (value := values[index]):
                continue
            height = max(1.0, value * scale)
            floor_y -= height
            title = f"{at:%a %d %b, %H:%M} UTC: {show(value)} {kind}"
            bars.append(
                Bar(
                    round(LEFT + index * step, 1),
                    round(floor_y, 1),
                    max(1, round(step - 0.6, 1)),
                    round(height, 1),
                    kind,
                    title,
                )
            )
    midnights = [(at, round(LEFT + index * step, 1)) for index, at in enumerate(times) if at.hour == 0]
    days = [Label(x, HEIGHT - 7, f"{at:%a %d}") for at, x in midnights if x + LABEL <= WIDTH]
    levels = [Label(LEFT - 6, round(HEIGHT - BOTTOM - level * scale, 1), show(level)) for level in (0, top / 2, top)]
    return Chart(tuple(bars), tuple(days), tuple(levels))


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return float(next(power * digit for digit in (1, 2, 5, 10) if power * digit >= value * 0.999999))
