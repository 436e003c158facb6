"""How a terminal, or a program, is told what `doctor` found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dataplane.daemon.diagnosis import diagnose
from dataplane.daemon.messages import printable


def doctor(path: Path | None, *, as_json: bool) -> int:
    """Shows every check; 1 if one of them fails."""
    checks = diagnose(path)
    if as_json:
        print(json.dumps({"checks": [asdict(check) for check in checks]}))
    else:
        console = Console(highlight=False, markup=False, emoji=False)
        for check in checks:
            word, colour = ("well ", "green") if check.ok else ("FAULT", "bold red")
            if check.ok and check.follows:
                word, colour = "note ", "yellow"
            line = Text.assemble((word, colour), f"  {check.name}: {printable(check.found)}")
            console.print(line, soft_wrap=True)
            if check.follows:
                console.print(f"       {check.follows}", soft_wrap=True)
    return int(any(not check.ok for check in checks))
