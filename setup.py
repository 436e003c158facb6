"""Builds the one extension, dataplane.hotpath; all else stands in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

HEADERS = ["batch.h", "flowhash.h", "loader.h", "nfnetlink.h", "nfqueue.h", "packet.h", "program.h"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "dataplane.hotpath",
                ["cext/hotpath.pyx"],
                include_dirs=["cext"],
                depends=["setup.py", *(f"cext/{header}" for header in HEADERS)],
                extra_compile_args=["-O3", "-std=gnu11", "-Wall", "-Wextra"],
            )
        ],
    ),
)
