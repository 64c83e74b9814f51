"""Builds the Cython core; everything else about the package is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

core = Extension(
    "pycluster._cluster",
    ["src/_cluster.pyx"],
    depends=["src/_linux.pxd"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(
    ext_modules=cythonize(
        [core],
        include_path=["src"],  # where `cimport _linux` is found
        compiler_directives={
            "language_level": 3,
            "auto_pickle": False,  # objects of the core mean nothing in another process
            "autotestdict": False,
            "binding": True,
            "boundscheck": False,
            "cdivision": True,
            "wraparound": False,
        },
    )
)
