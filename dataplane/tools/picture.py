"""The demo's picture: rates over time on the left, shares wanted and got on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataplane.errors import MachineError
from dataplane.tools.demo_result import DemoResult

_COLOURS = (
    "#3b6fb6",
    "#f2994a",
    "#3fa37c",
    "#b6518f",
    "#8d7b3f",
    "#6c5fc7",
    "#c4554d",
    "#5d8a99",
)
_INK, _FAINT, _GRID = "#22272e", "#6b7480", "#e3e7ec"


def draw(result: DemoResult, file: Path) -> None:
    """Writes PNG or SVG, by the suffix. MachineError without matplotlib, or without space."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise MachineError("demo: the picture needs matplotlib, which is not installed") from None
    style: Any = {
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _FAINT,
        "ytick.color": _FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
    }
    with pyplot.rc_context(style):
        figure, (rates, shares) = pyplot.subplots(
            1, 2, figsize=(11.5, 4.8), width_ratios=(1.7, 1), layout="constrained"
        )
        _rates(rates, result)
        _shares(shares, result)
        title = (
            f"{result.carried_bps / 1e6:.1f} Mbit/s over {len(result.links)} links, "
            f"{result.gain:.2f} times the better one alone"
        )
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.01, ha="left")
        try:
            figure.savefig(file, dpi=160)
        except OSError as error:
            raise MachineError(f"demo: {file}: {error.strerror}") from None
        finally:
            pyplot.close(figure)


def _rates(axes: Any, result: DemoResult) -> None:
    """Stacked: the height is the sum."""
    names = [link.name for link in result.links]
    times = [at_s for at_s, _ in result.rates[names[0]]]
    layers = [[bps / 1e6 for _, bps in result.rates[name]] for name in names]
    axes.stackplot(times, layers, colors=_COLOURS, labels=names, alpha=0.9, linewidth=0)
    top = result.capacity_sum_bps / 1e6
    axes.axhline(top, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"sum of capacities, {top:g} Mbit/s",
        (0, top),
        xytext=(6, -5),
        textcoords="offset points",
        va="top",
        color=_INK,
        fontsize=9,
    )
    for name, start_s, end_s in result.phases:
        middle = (start_s + end_s) / 2
        style = {"ha": "center", "va": "top", "fontweight": "bold", "fontsize": 9}
        axes.text(middle, top * 1.17, name, **style)
        axes.axvspan(start_s, end_s, ymin=1 / 1.2, color=_GRID, linewidth=0, zorder=0)
    for name, at_s in result.turns:
        axes.axvline(at_s, ymax=1 / 1.2, color=_INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.text(at_s, top * 0.88, f" {name}", ha="left", va="top", fontsize=9)
    axes.set(
        xlim=(0, times[-1]),
        ylim=(0, top * 1.2),
        xlabel="seconds",
        ylabel="Mbit/s passed by the providers",
    )
    axes.set_title("Rates over time", loc="left", fontsize=11)
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)


def _shares(axes: Any, result: DemoResult) -> None:
    """A row for what was wanted and for each thing that was got, split among the links."""
    rows = [
        ("wanted", [link.share_wanted for link in result.links]),
        ("slots", [link.share_slots[0] for link in result.links]),
        (f"{result.connections} connections", [link.share_connections for link in result.links]),
        ("bytes", [link.share_bytes for link in result.links]),
    ]
    labels = [label for label, _ in rows]
    left = [0.0] * len(rows)
    for number, link in enumerate(result.links):
        widths = [shares[number] * 100 for _, shares in rows]
        colour = _COLOURS[number % len(_COLOURS)]
        bars = axes.barh(labels, widths, left=left, color=colour, height=0.62, label=link.name)
        texts = [f"{width:.1f}" if width >= 6 else "" for width in widths]
        axes.bar_label(bars, texts, label_type="center", color="white", fontweight="bold")
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="share, %")
    axes.set_title("Shares wanted and got", loc="left", fontsize=11)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=_INK)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=min(len(result.links), 4),
        frameon=False,
    )
