"""One program, with a cluster and without: asyncio on cluster.listen. Argument: the number of workers, 0 for none."""

import asyncio
import sys

from programs.facts import tell
from pycluster import cluster


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while (await reader.readline()).strip():
        pass
    writer.write(f"worker {cluster.worker.id if cluster.worker else 0}".encode())
    writer.close()


async def serve() -> None:
    sock = cluster.listen(("127.0.0.1", 0))
    server = await asyncio.start_server(answer, sock=sock)
    tell("serving", port=server.sockets[0].getsockname()[1])
    await server.serve_forever()


workers = int(sys.argv[1])
if cluster.is_primary and workers:
    for _ in range(workers):
        cluster.fork()
    cluster.run()
else:
    asyncio.run(serve())
