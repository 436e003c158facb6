"""Builds dataplane.hotpath, and dataplane.recognise where nDPI is; all else: pyproject.toml."""

import shlex
import shutil
import subprocess

from Cython.Build import cythonize
from setuptools import Extension, setup

HEADERS = [
    "batch.h",
    "decide.h",
    "derive.h",
    "fault.h",
    "flowhash.h",
    "learned.h",
    "loader.h",
    "match.h",
    "memory.h",
    "nfnetlink.h",
    "nfqueue.h",
    "packet.h",
    "program.h",
    "ranges.h",
    "sweep.h",
]
RECOGNISE_HEADERS = ["confine.h", "copies.h", "flowhash.h", "packet.h", "recognise.h", "talks.h"]
FLAGS = ["-O3", "-std=gnu11", "-Wall", "-Wextra"]


def found(*command):
    """What the command prints, as words; None if it fails or is not there."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return shlex.split(done.stdout) if done.returncode == 0 else None


def recognise():
    """The extension that recognises applications: only where nDPI is, as our header knows it."""
    flags = found("pkg-config", "--cflags", "libndpi") or ["-I/usr/include/ndpi"]
    if found("cc", "-fsyntax-only", "-Icext", *flags, "-std=gnu11", "cext/recognise.h") is None:
        print("dataplane.recognise is left out: there is no nDPI 4.2 (Debian: libndpi-dev)")
        return []
    return [
        Extension(
            "dataplane.recognise",
            ["cext/recognise.pyx"],
            include_dirs=["cext"],
            libraries=["ndpi"],
            depends=["setup.py", *(f"cext/{header}" for header in RECOGNISE_HEADERS)],
            extra_compile_args=[*FLAGS, *flags],
        )
    ]


setup(
    ext_modules=cythonize(
        [
            Extension(
                "dataplane.hotpath",
                ["cext/hotpath.pyx"],
                include_dirs=["cext"],
                depends=["setup.py", *(f"cext/{header}" for header in HEADERS)],
                extra_compile_args=FLAGS,
            ),
            *recognise(),
        ],
    ),
)
