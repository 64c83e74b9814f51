"""hypercorn on asyncio: it ends by itself when the worker does, with its lifespan's shutdown."""

import asyncio
import contextlib
import functools
import signal
import sys
from types import ModuleType
from typing import Any

from ..child import Child

# Its end closes connections that have not said their request yet: what was accepted last has so long.
LAST_REQUEST_S = 0.2


def adapt(module: ModuleType, child: Child) -> None:
    """Replace `worker_serve`, also where it has been imported by name."""
    plain_worker_serve: Any = module.worker_serve

    @functools.wraps(plain_worker_serve)
    async def worker_serve(*args: Any, shutdown_trigger: Any = None, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        quiet = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(loop.call_later, LAST_REQUEST_S, quiet.set)

        async def trigger() -> None:
            waiting = [asyncio.ensure_future(quiet.wait())]
            if shutdown_trigger is not None:
                waiting.append(asyncio.ensure_future(shutdown_trigger()))
            try:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in waiting:
                    task.cancel()

        child.when_quiet(tell)
        if shutdown_trigger is None:
            # As hypercorn itself would; Ctrl-C is left to the primary.
            loop.add_signal_handler(signal.SIGTERM, quiet.set)
        with child.ended_by(lambda: None):
            await plain_worker_serve(*args, shutdown_trigger=trigger, **options)

    for importer in (module, sys.modules.get("hypercorn.asyncio")):
        if hasattr(importer, "worker_serve"):
            importer.worker_serve = worker_serve  # type: ignore[union-attr]
