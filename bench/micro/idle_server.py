"""The server of test_memory.py: ``idle_server.py PORT WORKERS``. Prints the workers' pids once all of them listen."""

import asyncio
import signal
import sys

from pycluster import Address, Worker, cluster

LIMIT_S = 60  # until it ends, whatever happens


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with what was read."""
    writer.write(await reader.read(1024))
    await writer.drain()
    writer.close()


async def serve() -> None:
    """Until told to end."""
    server = await asyncio.start_server(echo, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


def main() -> None:
    """The primary."""
    listening: list[int] = []

    @cluster.on("listening")
    def count(worker: Worker, address: Address) -> None:
        listening.append(worker.process.pid)
        if len(listening) == int(sys.argv[2]):
            print(*listening, flush=True)

    for _ in range(int(sys.argv[2])):
        cluster.fork()
    cluster.run()


signal.alarm(LIMIT_S)
if cluster.is_worker:
    asyncio.run(serve())
else:
    main()
