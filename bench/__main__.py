"""Measures Evenlink and its rivals in turn, and keeps what was found as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.measure import Options, Result, table
from bench.shown import Bar
from dataplane.errors import Error

NAMES = ("hotpath", "tables", "queue", "newconn", "tcp", "latency", "footprint", "failover")
# What `all` measures: `queue` twice, the second time with the other source; once if quick.
ALL = (
    "hotpath",
    "tables",
    "queue",
    "queue-offload",
    "newconn",
    "tcp",
    "latency",
    "footprint",
    "failover",
)
RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
RUNS, SECONDS = 5, 1.0
QUICK_RUNS, QUICK_SECONDS = 2, 0.3


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    made.add_argument(
        "name",
        choices=(*NAMES, "all", "report"),
        help="what is measured; report: write docs/benchmarks.md from what was kept",
    )
    made.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    made.add_argument("--runs", type=_runs, help=f"runs of each rival, in turn ({RUNS})")
    made.add_argument("--seconds", type=_seconds, help=f"length of a run ({SECONDS:g})")
    made.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="where NAME.json is kept"
    )
    made.add_argument("--only", metavar="ROW,…", help="these rows and no others")
    made.add_argument("--offload", action="store_true", help="queue: with the cheaper source")
    made.add_argument(
        "--pcap",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="hotpath: packets of a capture, too",
    )
    return made


def _runs(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.01 to 3600, got {text}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    # As Ctrl-C: namespaces and settings are put back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda sent, _: sys.exit(128 + sent))
    if chosen.name == "report":
        return _report(chosen.out, DOCS)
    options = Options(
        runs=chosen.runs or (QUICK_RUNS if chosen.quick else RUNS),
        seconds=chosen.seconds or (QUICK_SECONDS if chosen.quick else SECONDS),
        quick=chosen.quick,
        only=frozenset((chosen.only or "").split(",")) - {""},
        pcaps=tuple(chosen.pcap),
    )
    names = _names(chosen.name, quick=chosen.quick, offload=chosen.offload)
    found: dict[str, object] = {}
    status = 0
    for name in names:
        try:
            result = _measured(name, options)
        except (Error, ImportError, OSError, subprocess.SubprocessError) as fault:
            # The others are measured all the same.
            print(f"bench {name}: {fault}", file=sys.stderr)
            status = fault.exit_status if isinstance(fault, Error) else Error.exit_status
            continue
        for row, why in result.left_out.items():
            print(f"bench {name}: {row} is left out: {why}", file=sys.stderr)
        found[name] = _kept(result, chosen.out / f"{name}.json")
        if result.rows and not chosen.json:
            print(f"{name}\n\n{table(result)}\n", flush=True)
    if chosen.name == "all":
        status = _report(chosen.out, chosen.out) or status
    if chosen.json:
        print(json.dumps(found if chosen.name == "all" else found.get(names[0], {}), indent=2))
    return status


def _names(name: str, *, quick: bool, offload: bool) -> tuple[str, ...]:
    if name == "all":
        return tuple(each for each in ALL if not (quick and each == "queue-offload"))
    return (f"{name}-offload" if offload and name == "queue" else name,)


def _measured(name: str, options: Options) -> Result:
    module, _, offload = name.partition("-")
    with Bar(name) as bar:
        chosen = replace(options, offload=bool(offload), progress=bar)
        result: Result = importlib.import_module(f"bench.{module}").measure(chosen)
    return result


def _kept(result: Result, file: Path) -> object:
    """The JSON, which is also written."""
    found = result.as_json()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _report(results: Path, where: Path) -> int:
    """A page with tables and pictures of all that was kept."""
    from bench.report import write  # matplotlib is slow to import

    try:
        written = write(results, where)
    except Error as fault:
        print(f"bench report: {fault}", file=sys.stderr)
        return fault.exit_status
    print("\n".join(map(str, written)), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
