"""A primary in a loop of asyncio or uvloop, which forks inside of it. Arguments: "asyncio" or "uvloop", port.

Each worker serves the port with asyncio; a request ends it. Its loop is one of its own.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from programs.facts import tell, tell_events
from pycluster import Worker, cluster


def run(main: Coroutine[Any, Any, None]) -> None:
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(main)
    else:
        asyncio.run(main)


async def primary() -> None:
    tell_events()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    @cluster.on("listening")
    async def on_listening(worker: Worker, address: object) -> None:
        before = ticks
        await asyncio.sleep(0.05)
        tell("async", ticked=ticks > before, same_loop=asyncio.get_running_loop() is loop)
        if worker.id == 1:
            cluster.fork()  # from a task

    loop = asyncio.get_running_loop()
    ticking = asyncio.create_task(tick())
    cluster.fork()
    await cluster.serve()
    ticking.cancel()
    tell("over", loop=type(loop).__module__.partition(".")[0], workers=list(cluster.workers))
    await asyncio.sleep(0.01)


async def worker() -> None:
    assert cluster.worker is not None
    own = cluster.worker

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"worker {own.id}".encode())
        writer.close()
        own.disconnect()

    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[2]))
    output = await (await asyncio.create_subprocess_exec("echo", "out", stdout=-1)).communicate()
    number = await asyncio.to_thread(lambda: 7)
    tell("works", output=output[0].decode(), number=number)
    await server.serve_forever()


if cluster.is_primary:
    run(primary())
else:
    asyncio.run(worker())
