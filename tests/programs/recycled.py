"""A server on many workers that answers each line of a connection with its worker's id. Arguments: port, settings.

It keeps so many bytes for each line as LEAK in the environment says, for ever.
"""

import asyncio
import json
import logging
import os
import sys

from programs.facts import tell, tell_events
from pycluster import cluster

LEAK = int(os.environ.get("LEAK", "0"))
kept: list[bytes] = []


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    assert cluster.worker is not None
    while line := await reader.readline():
        if not line.strip():
            break
        kept.append(b"x" * LEAK)
        writer.write(b"worker %d\n" % cluster.worker.id)
        await writer.drain()
    writer.close()


async def serve() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if cluster.is_primary:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cluster.setup_primary(**json.loads(sys.argv[2]))
    tell_events()
    for _ in range(3):
        cluster.fork()
    cluster.run()
    tell("over")
else:
    asyncio.run(serve())
