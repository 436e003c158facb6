"""C programs of the bench: compiled into build/bench/ when a source is newer than what is there.

`build("blast.c")` gives the path of a program that is ready to run, `build("floor.c", "-O3")` one
with options of its own, `build("floor.c", "-shared", "-fPIC")` a library. Sources are in
bench/native/, and cext/ is among the include directories. `missing()` says why nothing can be
compiled, for rows that need it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from dataplane.errors import MachineError

SOURCES = Path(__file__).parent / "native"
BUILT = Path(__file__).parents[1] / "build" / "bench"
_HEADERS = Path(__file__).parents[1] / "cext"
_OPTIONS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
_LONGEST_S = 120


def missing(*sources: str) -> str | None:
    """Why these sources cannot be compiled here; None if they can, or already are."""
    if shutil.which("cc") or (sources and all(_fresh(source) for source in sources)):
        return None
    return "no C compiler (cc)"


def build(source: str, *options: str) -> Path:
    """Compiles bench/native/SOURCE unless that was done; MachineError if it cannot be.

    Later options win over the usual ones. The program is named for its source: one source is
    always built with the same options.
    """
    target = _target(source)
    if _fresh(source):
        return target
    reason = missing()
    if reason is not None:
        raise MachineError(f"{source}: {reason}")
    BUILT.mkdir(parents=True, exist_ok=True)
    # Two benches may compile at the same time: each moves a whole file into place.
    descriptor, made = tempfile.mkstemp(dir=BUILT)
    os.close(descriptor)
    try:
        command = ["cc", *_OPTIONS, f"-I{_HEADERS}", *_first(options)]
        command += [str(SOURCES / source), "-o", made, *_last(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S)
        if done.returncode:
            raise MachineError(f"{source} does not compile: {done.stderr.strip()}")
        os.chmod(made, 0o755)
        os.replace(made, target)
    finally:
        Path(made).unlink(missing_ok=True)
    return target


def _target(source: str) -> Path:
    return BUILT / Path(source).stem


def _fresh(source: str) -> bool:
    """What is there is younger than its source and every header."""
    try:
        built = _target(source).stat().st_mtime
    except FileNotFoundError:
        return False
    needed = [SOURCES / source, *SOURCES.glob("*.h"), *_HEADERS.glob("*.h")]
    return all(path.stat().st_mtime < built for path in needed)


def _first(options: tuple[str, ...]) -> list[str]:
    return [option for option in options if not option.startswith("-l")]


def _last(options: tuple[str, ...]) -> list[str]:
    """Libraries come behind what needs them."""
    return [option for option in options if option.startswith("-l")]
