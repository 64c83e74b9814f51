"""Compiles the benchmarks' C programs when they are needed, into build/bench."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BENCH = Path(__file__).resolve().parent
FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")
COMPILE_TIMEOUT_S = 60.0


def compiled(source: Path, *headers: Path) -> Path:
    """The program made of a source, compiled again if that or one of its headers is newer.

    Raises:
      RuntimeError: there is no C compiler, or it reports an error.
    """
    program = _cache_directory() / source.stem
    newest = max(file.stat().st_mtime for file in (source, *headers))
    if program.exists() and program.stat().st_mtime > newest:
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError(f"{source} needs a C compiler: install cc, or name one in the variable CC")
    # Compiled beside the final name and moved there: a benchmark started meanwhile never runs half a file.
    descriptor, name = tempfile.mkstemp(prefix=f"{source.stem}-", dir=program.parent)
    os.close(descriptor)
    half = Path(name)
    try:
        words = [*compiler.split(), *FLAGS, "-o", name, str(source)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} could not compile {source}:\n{done.stderr}")
        half.replace(program)
    finally:
        half.unlink(missing_ok=True)
    return program


def _cache_directory() -> Path:
    directory = BENCH.parent / "build" / "bench"
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
    if os.access(directory, os.W_OK):
        return directory
    # A read-only checkout. One directory per user, since another user's program must not be run.
    directory = Path(tempfile.gettempdir()) / f"pycluster-bench-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise RuntimeError(f"{directory} belongs to somebody else; remove it or set TMPDIR")
    return directory
