"""What programs under test tell: facts, one JSON object a line, which the tests wait for (tests/harness.py)."""

import json
import os
import time
from signal import Signals
from typing import Any

from pycluster import Address, Settings, Worker, cluster


def tell(event: str, **fields: Any) -> None:
    """Print a fact. It has the id of the process that tells it, and in a worker also the worker's, as `worker`."""
    fact: dict[str, Any] = {"event": event, "pid": os.getpid()}
    if cluster.worker is not None:
        fact["worker"] = cluster.worker.id
    line = json.dumps(fact | fields, default=_as_json) + "\n"
    # One write, so that processes that share stdout do not cut each other's lines; print() makes two when unbuffered.
    os.write(1, line.encode())


def tell_events() -> None:
    """In the primary: tell all events of the cluster, each as a fact of its name, with when, as `at_s`."""

    @cluster.on("setup")
    def on_setup(settings: Settings) -> None:
        tell("setup")

    @cluster.on("fork")
    def on_fork(worker: Worker) -> None:
        tell("fork", **_of(worker))

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        tell("online", **_of(worker))

    @cluster.on("listening")
    def on_listening(worker: Worker, address: Address) -> None:
        tell("listening", **_of(worker), **address._asdict())

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: Any) -> None:
        tell("message", **_of(worker), message=message)

    @cluster.on("disconnect")
    def on_disconnect(worker: Worker) -> None:
        tell("disconnect", **_of(worker))

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: Signals | int | None) -> None:
        name = signal.name if isinstance(signal, Signals) else signal
        tell("exit", **_of(worker), code=code, signal=name)


def open_descriptors() -> dict[int, str]:
    """What this process has open."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # listdir's own
    return found


def _of(worker: Worker) -> dict[str, Any]:
    return {
        "at_s": time.monotonic(),
        "worker": worker.id,
        "worker_pid": worker.process.pid,
        "state": worker.state,
        "asked": worker.exited_after_disconnect,
        "workers": list(cluster.workers),
    }


def _as_json(value: Any) -> Any:
    if isinstance(value, (tuple, set, frozenset)):
        return list(value)
    return repr(value)
