"""Functions called in the wrong role."""

import asyncio
import copy
import inspect
from collections.abc import Callable
from typing import Any

from programs.facts import tell
from pycluster import ClusterError, NotPrimaryError, NotWorkerError, cluster, process


def attempt(name: str, function: Callable[[], Any]) -> None:
    try:
        function()
    except ClusterError as error:
        tell("refused", name=name, error=type(error).__name__, text=str(error))
    else:
        tell("allowed", name=name)


assert issubclass(NotPrimaryError, ClusterError)
assert issubclass(NotWorkerError, ClusterError)
assert issubclass(ClusterError, RuntimeError)
if cluster.is_primary:
    tell("role", is_primary=cluster.is_primary, is_worker=cluster.is_worker, own=cluster.worker)
    attempt("send", lambda: process.send("hello"))
    attempt("disconnect", lambda: process.disconnect())
    attempt("on", lambda: process.on("message", print))
    tell("connected", connected=process.connected)
    tell("looked_at", same=copy.copy(process).pid == process.pid, unwrapped=inspect.unwrap(process) is process)  # type: ignore[arg-type]
    cluster.fork()
    cluster.run()
else:
    tell("role", is_primary=cluster.is_primary, is_worker=cluster.is_worker, own=repr(cluster.worker))
    attempt("fork", lambda: cluster.fork())
    attempt("workers", lambda: cluster.workers)
    attempt("setup_primary", lambda: cluster.setup_primary(silent=True))
    attempt("disconnect", lambda: cluster.disconnect())
    attempt("run", lambda: cluster.run())
    attempt("serve", lambda: asyncio.run(cluster.serve()))
    attempt("fileno", lambda: cluster.fileno())
    attempt("dispatch", lambda: cluster.dispatch())
    attempt("scheduling_policy", lambda: setattr(cluster, "scheduling_policy", "rr"))
