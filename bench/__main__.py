"""`python -m bench NAME [--json] [--runs N] [--seconds S] [--out DIRECTORY]`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from bench.measure import Result, table
from dataplane.errors import Error

NAMES = ("queue",)
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=int, default=5, help="runs of each rival, in turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a run")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIRECTORY", help="where NAME.json is kept"
    )
    chosen = parser.parse_args()
    try:
        result: Result = importlib.import_module(f"bench.{chosen.name}").measure(
            chosen.runs, chosen.seconds
        )
    except Error as fault:
        print(f"bench {chosen.name}: {fault}", file=sys.stderr)
        return fault.exit_status
    text = json.dumps(result.as_json(), indent=2)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / f"{chosen.name}.json").write_text(text + "\n")
    print(text if chosen.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
