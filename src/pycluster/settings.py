"""The settings of a cluster: what they are, their defaults, and what values they take."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import IO, Any, Literal

Stdio = Literal["inherit", "pipe", "ignore"] | int | IO[Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings in force; changed by `cluster.setup_primary`, for later forks.

    Those that are not of a worker but of the cluster hold for workers that run already, too: `respawn`,
    `graceful_timeout`, `max_unavailable` and `max_pending`.

    Attributes:
      exec: path of the worker's script; None for the main script (also when that was started with -m).
      args: the script's arguments; None for the primary's own.
      exec_argv: flags for the worker's interpreter, which "spawn" and "forkserver" start; None for the primary's own.
      cwd: the worker's working directory; None for the primary's.
      silent: whether the worker's stdout and stderr are pipes to the primary instead of inherited.
      stdio: what the worker's descriptors 0, 1 and 2 are: "inherit", "pipe", "ignore", a descriptor or a file.
      uid, gid: the worker's user and group; a changed user loses the supplementary groups. The primary still binds any
        port for it, but a path only where the worker may make the file itself, which is then its own.
      serialization: how messages are encoded: "msgpack" or "json".
      start_method: "fork": a copy of the primary that runs the script again from the top. "spawn": a fresh interpreter.
        "forkserver": a copy of a clean process, the template, which the first fork starts as a fresh interpreter.
      preload: names of modules that the template imports before any worker is copied from it.
      share_ports: whether bind and listen in a worker go to the primary.
      max_workers: how many workers there can be at a time; fixed by the first fork or counter. For a reload one more
        than there are; twice as many and one more where the primary executes itself anew.
      max_pending: connections that wait in one worker for one listener, not yet accepted, at most.
      max_message_size: the largest encoded message, in bytes.
      max_counters: how many names of counters there can be; fixed by the first fork or counter.
      graceful_timeout: seconds that workers have to finish before they are killed, once a signal, a reload or recycling
        has asked them to end. `disconnect` alone never kills.
      worker_timeout: seconds without progress, while connections wait for it, after which a worker is taken to hang;
        None to watch nobody. Progress is an accepted connection, or a tick of an event loop. A worker that has not yet
        accepted, and whose loop has not run yet, is starting, for as long as it likes.
      on_hang: what is done about such a worker: "report" (the event `hang`, and its stacks in the log), or "kill", too:
        with SIGKILL, a second later, if it still hangs.
      respawn: whether another worker comes in the place of one that has ended unasked: "never", as in Node.js,
        "on-failure", or "always", after exit status 0 too. At once or, when workers end soon after their start, after
        0.1 s, 0.2 s, … up to 30 s. When none has come up in 3 tries (or one for each worker) `run` gives up.
      max_connections_per_worker, max_age, max_rss: a worker that has accepted so many connections, is so many seconds
        old, or has so many bytes of resident memory (with what it shares; at two looks, a second apart) is replaced: a
        new one starts, and when that listens on the same addresses the old one is disconnected, and killed after
        `graceful_timeout`. For each worker the limits are up to a tenth lower, at random. None for no limit.
      max_unavailable: how many workers may be in the midst of that at a time.
    """

    exec: str | None = None
    args: Sequence[str] | None = None
    exec_argv: Sequence[str] | None = None
    cwd: str | None = None
    silent: bool = False
    stdio: Sequence[Stdio] | None = None
    uid: int | None = None
    gid: int | None = None
    serialization: Literal["msgpack", "json"] = "msgpack"
    start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    preload: Sequence[str] | None = None
    share_ports: bool = True
    max_workers: int = 1024
    max_pending: int = 64
    max_message_size: int = 64 * 1024 * 1024
    max_counters: int = 128
    graceful_timeout: float = 30.0
    worker_timeout: float | None = None
    on_hang: Literal["report", "kill"] = "report"
    respawn: Literal["never", "on-failure", "always"] = "never"
    max_connections_per_worker: int | None = None
    max_age: float | None = None
    max_rss: int | None = None
    max_unavailable: int = 1

    def merged(self, changes: dict[str, Any]) -> "Settings":
        """These settings with `changes` checked and made.

        Raises:
          TypeError: an unknown name, or a value of a wrong type. The message names it.
          ValueError: a value out of range, or settings that do not go together.
        """
        checked = {}
        for name, value in changes.items():
            if name not in _CHECKS:
                raise TypeError(f"unknown setting {name!r}; known are {', '.join(_CHECKS)}")
            checked[name] = _CHECKS[name](name, value)
        merged = replace(self, **checked)
        if merged.exec_argv and merged.start_method == "fork":
            raise ValueError(
                f"exec_argv {list(merged.exec_argv)!r} needs an interpreter to be started; set start_method='spawn'"
                " or 'forkserver'"
            )
        if merged.preload and merged.start_method != "forkserver":
            raise ValueError(
                f"preload {list(merged.preload)!r} needs a template to import it; set start_method='forkserver'"
            )
        return merged


def portable(settings: Settings) -> dict[str, Any]:
    """What another process can be told: all but `stdio`, as the descriptors and files in it are this one's."""
    return {name: value for name, value in vars(settings).items() if name != "stdio"}


def _wrong_type(name: str, wanted: str, value: object) -> TypeError:
    return TypeError(f"setting {name} takes {wanted}, not {value!r}")


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _path(name: str, value: object) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise _wrong_type(name, "a path", value)
    path = os.fspath(value)
    if not isinstance(path, str):
        raise _wrong_type(name, "a path as str", value)
    return path


def _strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise _wrong_type(name, "a list of strings", value)
    return tuple(value)


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, "True or False", value)
    return value


def _integer(lowest: int, highest: int) -> Callable[[str, Any], int]:
    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(name, "an integer", value)
        if not lowest <= value <= highest:
            raise ValueError(f"setting {name} takes {lowest} to {highest}, not {value}")
        return value

    return check


def _seconds(lowest: float) -> Callable[[str, Any], float]:
    def check(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong_type(name, "a number of seconds", value)
        if not lowest <= value <= 86400 * 365:
            raise ValueError(f"setting {name} takes {lowest:g} to a year of seconds, not {value}")
        return float(value)

    return check


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str):
            raise _wrong_type(name, " or ".join(map(repr, choices)), value)
        if value not in choices:
            raise ValueError(f"setting {name} takes {' or '.join(map(repr, choices))}, not {value!r}")
        return value

    return check


def _stdio(name: str, value: object) -> tuple[Stdio, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(name, "a list of up to three of 'inherit', 'pipe', 'ignore', a descriptor or a file", value)
    if len(value) > 3:
        raise ValueError(f"setting {name} takes up to three entries, for stdin, stdout and stderr, not {len(value)}")
    for entry in value:
        if isinstance(entry, str):
            _one_of("inherit", "pipe", "ignore")(name, entry)
        elif isinstance(entry, bool) or not (isinstance(entry, int) or hasattr(entry, "fileno")):
            raise _wrong_type(name, "'inherit', 'pipe', 'ignore', a descriptor or a file in each place", entry)
        elif isinstance(entry, int) and entry < 0:
            raise ValueError(f"setting {name} takes a descriptor, not {entry}")
    return tuple(value)


# max_workers is bounded by the memory that a slot may come to use (about 2 kB each), max_counters by a slot's size.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "exec": _optional(_path),
    "args": _optional(_strings),
    "exec_argv": _optional(_strings),
    "cwd": _optional(_path),
    "silent": _boolean,
    "stdio": _optional(_stdio),
    "uid": _optional(_integer(0, 2**32 - 2)),
    "gid": _optional(_integer(0, 2**32 - 2)),
    "serialization": _one_of("msgpack", "json"),
    "start_method": _one_of("fork", "spawn", "forkserver"),
    "preload": _optional(_strings),
    "share_ports": _boolean,
    "max_workers": _integer(1, 65536),
    "max_pending": _integer(1, 128),
    "max_message_size": _integer(1, 2**31 - 1),
    "max_counters": _integer(1, 65536),
    "graceful_timeout": _seconds(0),
    "worker_timeout": _optional(_seconds(0.1)),
    "on_hang": _one_of("report", "kill"),
    "respawn": _one_of("never", "on-failure", "always"),
    "max_connections_per_worker": _optional(_integer(1, 2**63 - 1)),
    "max_age": _optional(_seconds(1)),
    "max_rss": _optional(_integer(1, 2**63 - 1)),
    "max_unavailable": _integer(1, 65536),
}
assert set(_CHECKS) == {field.name for field in fields(Settings)}
