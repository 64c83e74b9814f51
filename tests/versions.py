"""A service of many versions, programs/versioned.py, which tests release, reload and load; and of the library."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import pycluster
from harness import PROGRAMS, TESTS, Program, Programs, free_port, request, wait_until
from load import Load, once

GET = b"GET / HTTP/1.0\r\n\r\n"
Versions = tuple[int, int]


def ask(port: int) -> Versions:
    """The versions of the script and of the module that it imports, as a worker answers."""
    answer = request(port, GET)
    found = re.search(rb"version (\d+)\.(\d+) worker \d+$", answer)
    assert found, answer
    return int(found[1]), int(found[2])


def versions(load: Load[Versions]) -> set[Versions]:
    """Which versions answer what is asked from now on."""
    answers = load.asked_from_now_on()
    assert wait_until(lambda: len(answers()) > 8 or load.failures)
    return set(answers())


class Service:
    """programs/versioned.py, and a module that it imports, of which there are new versions."""

    def __init__(
        self,
        programs: Programs,
        directory: pathlib.Path,
        count: int,
        way: str = "run",
        start: Sequence[str] = ("service.py",),
        cwd: pathlib.Path | None = None,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.port = free_port()
        self.count = count
        self.has_template = settings.get("start_method") == "forkserver"
        self.directory = directory
        self._source = (PROGRAMS / "versioned.py").read_text()
        self.release(0)
        arguments = [*start, str(count), str(self.port), json.dumps(settings), way]
        self.program = programs.add(Program(*arguments, cwd=cwd or directory, env=env))
        self.program.wait_for_all(count, "listening")

    def load(self, threads: int, pause_s: float = 0) -> Load[Versions]:
        """Clients that make a connection per request."""
        return Load([once(lambda: ask(self.port))] * threads, pause_s)

    def release(self, version: int, changes: Mapping[str, str] | None = None) -> None:
        """Write a new version, at once for whoever reads it."""
        source = self._source.replace("VERSION = 0", f"VERSION = {version}")
        for old, new in (changes or {}).items():
            assert old in source
            source = source.replace(old, new)
        # Of another size each time: Python takes what it has compiled for up to date when size and second are the same.
        for name, text in (("service.py", source), ("part.py", f"VERSION = {version}\n")):
            (self.directory / "new").write_text(text + "#" * version)
            (self.directory / "new").rename(self.directory / name)

    def reload(self) -> None:
        """Send SIGHUP, and wait until all workers are others."""
        before = set(self.program.processes())
        self.program.send_signal(signal.SIGHUP)

        def is_done() -> bool:
            now = set(self.program.processes())
            return now & before == {self.program.pid} and len(now) == self.count + 1 + self.has_template

        assert wait_until(is_done, 30), self.program

    def fails_to_reload(self, said: str, number: int = signal.SIGHUP) -> None:
        self.program.send_signal(number)
        assert wait_until(lambda: said in self.program.stderr), self.program

    def end(self, status: int = 0) -> None:
        self.program.send_signal(signal.SIGTERM)
        assert self.program.finish().returncode == status


class Library:
    """A copy of the library, of which there are other versions."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._package = directory / "pycluster"
        shutil.copytree(
            pathlib.Path(pycluster.__file__).parent, self._package, ignore=shutil.ignore_patterns("__pycache__")
        )
        self.env = {"PYTHONPATH": f"{directory}:{TESTS}"}

    def replace(self, module: str, old: str, new: str) -> None:
        path = self._package / module
        source = path.read_text()
        assert old in source
        path.write_text(source.replace(old, new))


def descriptors(program: Program) -> list[str]:
    """The kinds of what a primary has open."""
    directory = f"/proc/{program.pid}/fd"
    kinds = []
    for fd in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            kinds.append(os.readlink(f"{directory}/{fd}").partition(":")[0])
    return sorted(kinds)
