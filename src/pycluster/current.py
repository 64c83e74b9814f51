"""`pycluster.process`: the current process, with the names that it has in Node.js."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import NotWorkerError
from .worker import Worker, WorkerProcess

if TYPE_CHECKING:
    from .channel import Callback, Handle, HasFileno


class Process:
    """`pycluster.process`: in a worker its `WorkerProcess`, with the same names; in the primary mostly errors."""

    def __init__(self, worker: Callable[[], Worker | None]) -> None:
        """`worker` tells this process's worker, if it is one."""
        self._worker = worker

    def _own(self, name: str) -> WorkerProcess:
        worker = self._worker()
        if worker is None:
            raise NotWorkerError(f"process.{name} is a worker's; this is the primary")
        return worker.process

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"process has no attribute {name!r}")  # copy, inspect and others only want to know
        return getattr(self._own(name), name)

    def send(
        self,
        message: object,
        handle: "Handle | HasFileno | None" = None,
        *,
        keep_open: bool = False,
        callback: "Callback | None" = None,
    ) -> bool:
        """Send a message to the primary; see `Worker.send`."""
        return self._own("send").send(message, handle, keep_open=keep_open, callback=callback)

    @property
    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    @property
    def connected(self) -> bool:
        """Whether there is a primary to talk to; False in the primary."""
        worker = self._worker()
        return worker is not None and worker.process.connected
