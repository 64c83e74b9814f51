"""Workers that end before they have come up, under respawn. Arguments: how the primary runs, and how many workers."""

import asyncio
import atexit
import sys

from programs.facts import tell
from pycluster import cluster


async def serve() -> None:
    await cluster.serve()


if cluster.is_primary:
    cluster.setup_primary(respawn="on-failure")
    cluster.on("exit", lambda worker, code, signal: tell("exit", worker=worker.id, slot=worker.slot, code=code))
    atexit.register(tell, "atexit")
    for _ in range(int(sys.argv[2])):
        cluster.fork()
    if sys.argv[1] == "run":
        cluster.run()
    elif sys.argv[1] == "serve":
        asyncio.run(serve())
    elif sys.argv[1] == "caught":
        try:
            cluster.run()
        except SystemExit as exception:
            tell("caught", code=exception.code)
else:
    sys.exit(5)
