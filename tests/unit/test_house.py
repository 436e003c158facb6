"""The house stays as drawn: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dataplane"


def test_import_rules() -> None:
    """The contracts of pyproject.toml."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; exit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def imports(source: Path) -> set[str]:
    """The modules that a file names in its imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_who_touches_the_hot_path() -> None:
    """import-linter does not see compiled modules."""
    users = {
        str(source.relative_to(PACKAGE))
        for source in PACKAGE.rglob("*.py")
        if "dataplane.hotpath" in imports(source)
    }
    assert {user for user in users if not user.startswith("daemon/")} <= {
        "decide/explain.py",
        "tools/simulate.py",
    }


def test_no_file_is_too_long_to_read() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "cext").glob("*.h"), ROOT / "cext" / "hotpath.pyx"]
    long = {
        str(source.relative_to(ROOT)): lines
        for source in sources
        if (lines := len(source.read_text().splitlines())) > 500
    }
    assert long == {}
