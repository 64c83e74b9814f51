"""What is compared: ways to share a port, and peers. How each is started, and why one is skipped.

The ways run work.py, by server.py::

    shared      processes that accept from one listening socket: the kernel picks (the operating system's balancing)
    reuseport   a listening socket each, on one port with SO_REUSEPORT: the kernel picks by a hash of the addresses
    rr          pycluster, SCHED_RR: the primary accepts and hands over
    none        pycluster, SCHED_NONE: the shared socket again, through the library
    shared2     shared once more: what this machine calls a difference where there is none

The peers are Node.js's cluster module under both policies, a C program that does nothing but hand over, one
connection per wake-up (a reference, not a limit: pycluster's primary hands over several), and for the engine ``app``
the HTTP servers that run peers/web_app.py, and Node.js's own.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import native
import work
from running import BENCH, HOST, Command

Engine = work.Engine | Literal["app"]
BIN = Path(sys.executable).parent
PEERS = BENCH / "peers"
BACKLOG = 2048  # the default of uvicorn, gunicorn and granian


@dataclass(frozen=True, slots=True)
class Task:
    """What a variant is started for."""

    protocol: work.Protocol
    engine: Engine
    workers: int
    loop: Literal["asyncio", "uvloop"] = "uvloop"  # of the engine app
    api: work.Api = "streams"


@dataclass(frozen=True, slots=True)
class Variant:
    """One of what is compared.

    Attributes:
      engines: with which it can be compared.
      command: how it is started on a port.
      missing: says why it cannot run here, started for this; empty when it can.
      color: in plots, the same in all of them.
      keeps: whether it answers many requests on a connection.
    """

    name: str
    engines: frozenset[Engine]
    command: Callable[[int, Task], Command]
    color: str
    missing: Callable[[Task], str]
    keeps: bool = True


def _server(start: str, policy: str | None, port: int, task: Task) -> Command:
    words = [sys.executable, str(BENCH / "server.py"), start, "--port", str(port), "--workers", str(task.workers)]
    words += ["--protocol", task.protocol, "--engine", task.engine, "--api", task.api]
    return Command(words, 1, {"PYCLUSTER_SCHED_POLICY": policy} if policy else {})


def _node(policy: str, port: int, task: Task) -> Command:
    words = ["node", str(PEERS / "cluster.js"), str(port), str(task.workers), task.protocol]
    return Command(words, 1, {"NODE_CLUSTER_SCHED_POLICY": policy})


def _handoff(port: int, task: Task) -> Command:
    program = native.compiled(PEERS / "handoff.c")
    return Command([str(program), str(port), str(task.workers), task.protocol], 1)


def _app(words: Callable[[str, str, str], list[str]], port: int, task: Task, *, may_fail: bool = False) -> Command:
    """A server of web_app.py; each of its workers is ready by itself."""
    given = words(str(port), str(task.workers), task.loop)
    given[0] = str(BIN / given[0])
    return Command(given, task.workers, {"PYTHONPATH": str(PEERS)}, may_fail=may_fail)


def _serve(policy: str, port: str, workers: str, loop: str) -> list[str]:
    words = ["pycluster", "serve", "web_app:asgi", "-w", workers, "--policy", policy, "--loop", loop]
    return [*words, "--host", HOST, "--port", port, "--backlog", str(BACKLOG)]


def _uvicorn(port: str, workers: str, loop: str) -> list[str]:
    words = ["uvicorn", "web_app:asgi", "--workers", workers, "--loop", loop, "--log-level", "warning"]
    return [*words, "--host", HOST, "--port", port, "--backlog", str(BACKLOG)]


def _hypercorn(port: str, workers: str, loop: str) -> list[str]:
    words = ["hypercorn", "web_app:asgi", "--workers", workers, "--worker-class", loop, "--log-level", "WARNING"]
    return [*words, "--bind", f"{HOST}:{port}", "--backlog", str(BACKLOG), "--graceful-timeout", "1"]


def _granian(port: str, workers: str, loop: str) -> list[str]:
    words = ["granian", "--interface", "asgi", "web_app:asgi", "--workers", workers, "--loop", loop]
    words += ["--log-level", "warning", "--no-ws", "--http", "1", "--workers-kill-timeout", "2"]
    return [*words, "--host", HOST, "--port", port, "--backlog", str(BACKLOG)]


def _gunicorn(kind: list[str], port: str, workers: str, loop: str) -> list[str]:
    words = ["gunicorn", "web_app:make_wsgi()", "--workers", workers, "--worker-class", *kind]
    return [*words, "--bind", f"{HOST}:{port}", "--backlog", str(BACKLOG), "--log-level", "warning"]


def _absent(*packages: str) -> str:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


def _without_engine(task: Task) -> str:
    return _absent("uvloop") if task.engine == "uvloop" else ""


def _without_app(script: str, *packages: str, has_loop: bool = True) -> Callable[[Task], str]:
    def missing(task: Task) -> str:
        if why := _absent(*packages, *(["uvloop"] if has_loop and task.loop == "uvloop" else [])):
            return why
        return "" if (BIN / script).exists() else f"no {script} in {BIN}"

    return missing


def _without_node(_: Task) -> str:
    return "" if shutil.which("node") else "no node on PATH"


def _without_compiler(_: Task) -> str:
    try:
        native.compiled(PEERS / "handoff.c")
    except RuntimeError as exception:
        return str(exception)
    return ""


_PLAIN: frozenset[Engine] = frozenset({"asyncio", "uvloop", "blocking"})
_ANY_LOOP: frozenset[Engine] = frozenset({"asyncio", "uvloop", "app"})  # Node.js has a loop of its own
_BLOCKING: frozenset[Engine] = frozenset({"blocking"})
_APP: frozenset[Engine] = frozenset({"app"})
_GTHREAD = ["gthread", "--threads", "4"]

# The first of those that take part is what the others are divided by.
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("shared", _PLAIN, functools.partial(_server, "shared", None), "#7f7f7f", _without_engine),
        Variant("reuseport", _PLAIN, functools.partial(_server, "reuseport", None), "#e69f00", _without_engine),
        Variant("rr", _PLAIN, functools.partial(_server, "cluster", "rr"), "#0072b2", _without_engine),
        Variant("none", _PLAIN, functools.partial(_server, "cluster", "none"), "#56b4e9", _without_engine),
        Variant("shared2", _PLAIN, functools.partial(_server, "shared", None), "#bfbfbf", _without_engine),
        Variant(
            "uvicorn --workers",
            _APP,
            functools.partial(_app, _uvicorn, may_fail=True),  # with one worker it ends by the signal
            "#7f7f7f",
            _without_app("uvicorn", "uvicorn"),
        ),
        Variant(
            "pycluster serve",
            _APP,
            functools.partial(_app, functools.partial(_serve, "rr")),
            "#0072b2",
            _without_app("pycluster", "typer", "rich", "uvicorn", "waitress"),
        ),
        Variant(
            "pycluster serve none",
            _APP,
            functools.partial(_app, functools.partial(_serve, "none")),
            "#56b4e9",
            _without_app("pycluster", "typer", "rich", "uvicorn", "waitress"),
        ),
        Variant(
            "hypercorn", _APP, functools.partial(_app, _hypercorn), "#cc79a7", _without_app("hypercorn", "hypercorn")
        ),
        Variant("granian", _APP, functools.partial(_app, _granian), "#d55e00", _without_app("granian", "granian")),
        Variant(
            "gunicorn sync",
            _APP,
            functools.partial(_app, functools.partial(_gunicorn, ["sync"])),
            "#e69f00",
            _without_app("gunicorn", "gunicorn", has_loop=False),
            keeps=False,
        ),
        Variant(
            "gunicorn gthread",
            _APP,
            functools.partial(_app, functools.partial(_gunicorn, _GTHREAD)),
            "#f0e442",
            _without_app("gunicorn", "gunicorn", has_loop=False),
        ),
        Variant("Node.js rr", _ANY_LOOP, functools.partial(_node, "rr"), "#009e73", _without_node),
        Variant("Node.js none", _ANY_LOOP, functools.partial(_node, "none"), "#8fd3b8", _without_node),
        Variant("C handoff", _BLOCKING, _handoff, "#000000", _without_compiler),
    )
}


def chosen(text: str) -> list[str]:
    """Names of variants out of a command line, with commas between."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
    return names


def versions() -> dict[str, str]:
    """Those of the peers that are here."""
    found = {}
    if node := shutil.which("node"):
        found["node"] = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    for package in ("uvicorn", "httptools", "gunicorn", "hypercorn", "granian"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
