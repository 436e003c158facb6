"""Pictures of results: bars with their spread, and cost against size. They need matplotlib.

They draw what the JSON of a benchmark holds, so that a result of another day can be drawn as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataplane.errors import MachineError

_OURS, _OTHERS = "#3b6fb6", "#b9c4d0"
_WHO = {"sender": "#b9c4d0", "worker": "#f2994a", "receiver": "#8fb8a8", "ksoftirqd": "#6b7480"}
_SERIES = ("#3b6fb6", "#6b7480", "#f2994a", "#3fa37c", "#b6518f")
_INK, _FAINT, _GRID = "#22272e", "#6b7480", "#e3e7ec"
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "svg.fonttype": "none",
    "svg.hashsalt": "evenlink",  # the same picture has the same bytes
}
# One rival that costs ten times the others must not make them all look alike.
_TOWERS = 3.0


def bars(found: Mapping[str, Any], file: Path, title: str) -> None:
    """Every row's median with its spread, the best at the top; beside it CPU time a packet."""
    most_first = not found.get("lower_is_better")
    rows = sorted(found["rows"], key=lambda row: float(row["median"]), reverse=most_first)
    spent = [row for row in rows if row.get("cpu_us_per_packet")]
    pyplot = _pyplot()
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            1,
            2 if spent else 1,
            figsize=(11.5 if spent else 8, 1.4 + 0.42 * len(rows)),
            width_ratios=(1.5, 1) if spent else None,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        _rates(axes[0][0], rows, found["ratios"])
        if spent:
            _cpu(axes[0][1], rows)
        _save(pyplot, figure, file, title)


def _rates(axes: Any, rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float]) -> None:
    names = [row["name"] for row in rows]
    medians = [row["median"] for row in rows]
    below = [row["median"] - row["min"] for row in rows]
    above = [row["max"] - row["median"] for row in rows]
    ours = {name.partition("/")[0] for name in ratios}
    axes.barh(
        names,
        medians,
        xerr=(below, above),
        color=[_OURS if name in ours else _OTHERS for name in names],
        error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 3},
        height=0.66,
    )
    for place, row in enumerate(rows):
        text = f"{row['median']:,.0f}" if row["median"] >= 100 else f"{row['median']:.3g}"
        axes.annotate(
            text,
            (row["max"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set(xlim=(0, max(row["max"] for row in rows) * 1.18), xlabel=rows[0]["unit"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.invert_yaxis()
    axes.set_title("median, and least to most of all runs", loc="left", fontsize=10)
    _plain(axes)


def _cpu(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Stacked by who worked; bars that tower above the others are cut off and say their length."""
    totals = [row.get("cpu_us_per_packet") or 0.0 for row in rows]
    middle = sorted(totals)[len(totals) // 2]
    shown = [total for total in totals if total <= _TOWERS * middle]
    limit = max(shown) * 1.25
    left = [0.0] * len(rows)
    for who, colour in _WHO.items():
        widths = [float(row.get("cpu_us", {}).get(who, 0.0)) for row in rows]
        if any(widths):
            axes.barh(
                [row["name"] for row in rows],
                widths,
                left=left,
                color=colour,
                height=0.66,
                label=who,
            )
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for place, total in enumerate(totals):
        cut = total > limit
        axes.annotate(
            f"{total:.0f} →" if cut else f"{total:.2g}",
            (limit if cut else total, place),
            xytext=(-6 if cut else 6, 0),
            textcoords="offset points",
            ha="right" if cut else "left",
            va="center",
            fontsize=9,
        )
    axes.set(xlim=(0, limit))
    axes.set_title("CPU time a packet, µs", loc="left", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=3, frameon=False, fontsize=9)
    _plain(axes)


def curves(found: Mapping[str, Any], file: Path, title: str) -> None:
    """hotpath's `curves`: nanoseconds a packet by the number of flows, and by that of links."""
    pyplot = _pyplot()
    wanted = found["curves"]
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            1, len(wanted), figsize=(11.5, 4.2), squeeze=False, layout="constrained"
        )
        for each, (name, series) in zip(axes[0], wanted.items(), strict=True):
            for colour, (who, points) in zip(_SERIES, series.items(), strict=False):
                across = [point[0] for point in points]
                up = [point[1] for point in points]
                each.plot(across, up, marker="o", markersize=4, color=colour, label=who)
            each.set_xscale("log", base=2 if name == "links" else 10)
            each.set(xlabel=name.replace("_", " "), ylabel="ns a packet")
            each.set_ylim(bottom=0)
            if name == "links":
                each.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            each.set_title(_AGAINST.get(name, name), loc="left", fontsize=10)
            each.grid(color=_GRID)
            each.set_axisbelow(True)
            each.legend(frameon=False, fontsize=9)
        _save(pyplot, figure, file, title)


_AGAINST = {
    "working_set": "against the number of flows in turn",
    "links": "against the number of links",
}


def _plain(axes: Any) -> None:
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=_INK)


def _save(pyplot: Any, figure: Any, file: Path, title: str) -> None:
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    try:
        # Without the date, which is in the page.
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    except OSError as fault:
        raise MachineError(f"bench: {file}: {fault.strerror}") from fault
    finally:
        pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise MachineError("bench: pictures need matplotlib, which is not installed") from None
    return pyplot
