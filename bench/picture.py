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
    """What the key `curves` holds: a small picture each, three in a row."""
    pyplot = _pyplot()
    wanted = found["curves"]
    rows = -(-len(wanted) // 3)
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            rows,
            min(len(wanted), 3),
            figsize=(11.5, 4.2 if rows == 1 else 3.2 * rows),
            squeeze=False,
            layout="constrained",
        )
        for each, (name, series) in zip(axes.flat, wanted.items(), strict=False):
            _curve(each, name, series)
        _save(pyplot, figure, file, title)


def _curve(axes: Any, name: str, series: Mapping[str, Sequence[Sequence[float]]]) -> None:
    what, _, along = name.rpartition("_by_")
    places: set[float] = set()
    for colour, (who, points) in zip(_SERIES, series.items(), strict=False):
        across = [point[0] for point in points]
        places.update(across)
        up = [point[1] for point in points]
        axes.plot(across, up, marker="o", markersize=4, color=colour, label=who)
    if what:
        # None at all has a place as well; the first steps are as wide as the others.
        axes.set_xscale("symlog", linthresh=min(filter(None, places), default=1))
        axes.set_xticks(sorted(places), minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xscale("log", base=2 if name == "links" else 10)
        if name == "links":
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel=along.replace("_", " "), ylabel=_UNITS.get(what, "ns a packet"))
    highest = max((point[1] for points in series.values() for point in points), default=0)
    axes.set_ylim(0, 1.08 * highest or 1)
    axes.set_title(_AGAINST.get(what or name, name), loc="left", fontsize=10)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    if any(series):
        axes.legend(frameon=False, fontsize=9)


_AGAINST = {
    "working_set": "against the number of flows in turn",
    "links": "against the number of links",
    "cost": "cost of a packet",
    "load": "from the file to the program",
    "memory": "memory of the process",
}
_UNITS = {"load": "ms", "memory": "MiB"}


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
