"""trio. Arguments: port, and a certificate and its key for TLS."""

import ssl
import sys

import trio

from programs.served.apps import HOST, own_id


async def handle(stream: trio.abc.Stream) -> None:
    heard = b""
    async for chunk in stream:
        heard += chunk
        if heard.endswith(b"\r\n\r\n"):
            break
    await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + own_id())
    await stream.aclose()


async def main() -> None:
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:4])
        await trio.serve_ssl_over_tcp(handle, int(sys.argv[1]), context, host=HOST, https_compatible=True)
    else:
        await trio.serve_tcp(handle, int(sys.argv[1]), host=HOST)


trio.run(main)
