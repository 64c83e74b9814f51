"""The command line: its options, and whether they make sense. What they ask for is done elsewhere.

Exit statuses: 0 after a stop that was asked for, or when all workers have done their work; 1 when a worker has crashed
and was not replaced; 2 for wrong usage; 3 when no worker has ever come up.

Typer stays in the primary, and so in the copies of it that forked workers are: 4 MB with Rich, which the workers share
and do not touch.
"""

import importlib.util
import json
import os
from typing import Annotated, Any, Literal

import typer

from .cluster import cluster
from .journal import Journal
from .processors import usable_processors
from .supervisor import Supervisor, some_workers
from .watcher import Watcher

_MODULE = os.path.join(os.path.dirname(__file__), "module.py")
_MOST_WORKERS = 1000

app = typer.Typer(
    help="Run a server on many processes that share its ports.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _count(value: str) -> int:
    """How many workers `-w` asks for."""
    if value == "auto":
        return usable_processors()
    if value.isascii() and value.isdigit() and 1 <= int(value) <= _MOST_WORKERS:
        return int(value)
    raise typer.BadParameter(f"takes auto, or 1 to {_MOST_WORKERS}, not {value!r}")


Workers = Annotated[
    int,
    typer.Option("-w", "--workers", parser=_count, metavar="N|auto", help="How many; auto: one per usable processor."),
]
Policy = Annotated[
    Literal["rr", "none"] | None,
    typer.Option(help="rr: connections go to the workers in turn. none: the kernel picks.", show_default="rr"),
]
StartMethod = Annotated[
    Literal["fork", "spawn", "forkserver"],
    typer.Option(
        help="fork: a worker starts in milliseconds. spawn: a fresh interpreter. forkserver: a copy of a clean one."
    ),
]
Respawn = Annotated[bool, typer.Option(help="Start another worker in the place of one that crashes.")]
Reload = Annotated[
    bool, typer.Option("--reload-on-change", help="Reload when a Python file of the program has changed.")
]
JsonLogs = Annotated[bool, typer.Option("--json-logs", help="Say what happens as JSON, one object a line.")]


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    script: Annotated[str, typer.Argument(help="A script, a directory or an archive; with -m, a module.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments.")] = None,
    is_module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    workers: Workers = "auto",  # type: ignore[assignment]
    policy: Policy = None,
    start_method: StartMethod = "fork",
    respawn: Respawn = True,
    reload_on_change: Reload = False,
    json_logs: JsonLogs = False,
) -> None:
    """Run a server script, as it is, on many workers."""
    if is_module:
        name, what, watched = f"-m {script}", {"exec": _MODULE, "args": [script, *(args or ())]}, os.getcwd()
    elif os.path.exists(script):
        name, what, watched = script, {"exec": script, "args": list(args or ())}, os.path.abspath(script)
    else:
        raise typer.BadParameter(f"there is no {script!r} here", param_hint="SCRIPT")
    _supervise(name, what, watched if reload_on_change else None, workers, policy, start_method, respawn, json_logs)


@app.command()
def serve(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="An ASGI or a WSGI app.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port.")] = 8000,
    uds: Annotated[str | None, typer.Option(metavar="PATH", help="Listen on a Unix socket instead.")] = None,
    backlog: Annotated[int, typer.Option(min=1, help="How many connections may wait in the kernel.")] = 511,
    loop: Annotated[
        Literal["auto", "asyncio", "uvloop"], typer.Option(help="The event loop of ASGI; auto: uvloop if it is there.")
    ] = "auto",
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug"],
        typer.Option(help="What the HTTP server logs; info: each request, of ASGI."),
    ] = "warning",
    factory: Annotated[bool, typer.Option("--factory", help="APP is a function that returns the app.")] = False,
    workers: Workers = "auto",  # type: ignore[assignment]
    policy: Policy = None,
    start_method: StartMethod = "fork",
    respawn: Respawn = True,
    reload_on_change: Reload = False,
    json_logs: JsonLogs = False,
) -> None:
    """Serve an ASGI or a WSGI app over HTTP on many workers."""
    module, _, attribute = target.partition(":")
    if not (module and attribute):
        raise typer.BadParameter(f"takes a module and an app in it, such as main:app, not {target!r}", param_hint="APP")
    for package in ("uvicorn", "waitress", *(["uvloop"] if loop == "uvloop" else [])):
        if importlib.util.find_spec(package) is None:
            raise typer.BadParameter(f"{package} is not installed: pip install {package}")
    options = {
        "app": target,
        "host": host,
        "port": port,
        "uds": None if uds is None else os.path.abspath(uds),
        "backlog": backlog,
        "loop": loop,
        "log_level": log_level,
        "factory": factory,
    }
    what = {"exec": _MODULE, "args": ["pycluster.serving", json.dumps(options)]}
    watched = os.getcwd() if reload_on_change else None
    _supervise(target, what, watched, workers, policy, start_method, respawn, json_logs)


def _supervise(
    name: str,
    what: dict[str, Any],
    watched: str | None,
    workers: int,
    policy: Literal["rr", "none"] | None,
    start_method: str,
    respawn: bool,
    json_logs: bool,
) -> None:
    if watched is not None and importlib.util.find_spec("watchfiles") is None:
        raise typer.BadParameter("watchfiles is not installed: pip install watchfiles")
    if policy is not None:
        cluster.scheduling_policy = policy
    # Room for a worker more, in the middle of a reload.
    cluster.setup_primary(
        start_method=start_method,
        max_workers=max(1024, workers + 24),
        respawn="on-failure" if respawn else "never",
        **what,
    )
    journal = Journal(json_logs)
    journal.say(
        "starting",
        f"primary {os.getpid()} runs {name} on {some_workers(workers)}",
        pid=os.getpid(),
        runs=name,
        workers=workers,
        policy=cluster.scheduling_policy,
        start_method=start_method,
    )
    watcher = None if watched is None else Watcher(watched)
    raise typer.Exit(Supervisor(workers, journal, watcher).run())
