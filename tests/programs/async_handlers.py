"""Handlers that are coroutines: one that fails, one that forks when the last worker has gone, one without a loop.

Argument: "serve", or "run" for a primary without a loop.
"""

import asyncio
import sys

from programs.facts import tell
from pycluster import Worker, cluster


async def on_exit(worker: Worker, code: int | None, signal: object) -> None:
    tell("exit", worker=worker.id, code=code)
    if worker.id < 3:
        cluster.fork()


async def failing(worker: Worker, code: int | None, signal: object) -> None:
    await asyncio.sleep(0)
    raise LookupError(f"after {worker.id}")


async def serve() -> None:
    cluster.fork()
    await cluster.serve()
    tell("over", workers=list(cluster.workers))


if cluster.is_primary:
    cluster.on("exit", on_exit)
    cluster.on("exit", failing)
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        cluster.fork()
        cluster.run()
        tell("over", workers=list(cluster.workers))
