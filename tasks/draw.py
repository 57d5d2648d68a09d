"""Draw: the night as a picture. In: the coverage curve and the decisions of a plan. Out: PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

COLOURS: Final = {"bake": "#c4541a", "keep": "#2f6f8f", "skip": "#b9b4ab"}
_MOST_REASONS: Final = 12
_INK: Final = "#2b2a28"


@dataclass(frozen=True)
class Curve:
    """Candidates from the most to the least expected: how many, and the share of expected requests they cover.

    Those that are in the store by the morning come first; there are ``served`` of them.
    """

    answers: Sequence[int]
    share: Sequence[float]
    served: int
    served_share: float


def draw(title: str, curve: Curve, decided: Sequence[tuple[str, str, int]]) -> bytes:
    """The coverage curve beside the decisions, each (decision, reason, candidates), as a PNG of 1280 by 560 pixels."""
    figure = Figure(figsize=(12.8, 5.6), dpi=100, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=_INK)
    _coverage(left, curve)
    _decisions(right, decided)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK, labelsize=9)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _coverage(axes: Axes, curve: Curve) -> None:
    axes.set_title("Expected repeats answered from the store", loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("answers, most expected first", fontsize=9, color=_INK)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y", color="#e8e5e0")
    axes.set_axisbelow(True)
    if not curve.answers:
        axes.text(0.5, 0.5, "no candidates", ha="center", va="center", transform=axes.transAxes, color=_INK)
        return
    inside = [(n, share) for n, share in zip(curve.answers, curve.share, strict=True) if n <= curve.served]
    xs, ys = [0, *(n for n, _ in inside), curve.served], [0.0, *(share for _, share in inside), curve.served_share]
    axes.fill_between(xs, ys, color=COLOURS["bake"], alpha=0.15, linewidth=0)
    axes.plot([0, *curve.answers], [0.0, *curve.share], color=COLOURS["skip"], linewidth=1.5, label="not in the store")
    axes.plot(xs, ys, color=COLOURS["bake"], linewidth=2.5, label="in the store after this night")
    axes.axvline(curve.served, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    late = curve.served > 0.6 * curve.answers[-1]
    axes.annotate(
        f"{curve.served:,} answers: {curve.served_share:.0%}",
        (curve.served, curve.served_share),
        xytext=(-8 if late else 8, -16),
        textcoords="offset points",
        ha="right" if late else "left",
        fontsize=10,
        fontweight="bold",
        color=_INK,
    )
    axes.set_xlim(0, max(curve.answers[-1], 1) * 1.02)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=_INK)


def _decisions(axes: Axes, decided: Sequence[tuple[str, str, int]]) -> None:
    axes.set_title("Candidates by decision and reason", loc="left", fontsize=11, color=_INK)
    ranked = sorted(decided, key=lambda row: (list(COLOURS).index(row[0]), -row[2]))
    shown, rest = ranked[:_MOST_REASONS], ranked[_MOST_REASONS:]
    if rest:
        shown = [*shown, ("skip", f"{len(rest)} more reasons", sum(number for _, _, number in rest))]
    labels = [f"{decision}: {_clipped(reason)}" for decision, reason, _ in shown]
    numbers = [number for _, _, number in shown]
    bars = axes.barh(range(len(shown)), numbers, color=[COLOURS[decision] for decision, _, _ in shown], height=0.7)
    axes.bar_label(bars, [f"{number:,}" for number in numbers], padding=4, fontsize=9, color=_INK)
    axes.set_yticks(range(len(shown)), labels, parse_math=False)  # a pattern may hold dollar signs
    axes.invert_yaxis()
    axes.set_xlim(0, max(numbers, default=1) * 1.18)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False)


def _clipped(text: str, longest: int = 34) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
