"""asyncio's streams. Arguments: port, and a certificate and its key for TLS."""

import asyncio
import ssl
import sys

from programs.served.apps import HOST, own_id


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while (await reader.readline()).strip():
        pass
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + own_id())
    await writer.drain()
    writer.close()


async def main() -> None:
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:4])
    server = await asyncio.start_server(handle, HOST, int(sys.argv[1]), ssl=context)
    await server.serve_forever()


asyncio.run(main())
