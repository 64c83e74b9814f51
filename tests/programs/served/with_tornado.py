"""tornado. Arguments: port, and a certificate and its key for TLS."""

import asyncio
import ssl
import sys

from tornado.web import Application, RequestHandler

from programs.served.apps import HOST, own_id


class Handler(RequestHandler):  # type: ignore[misc]
    def get(self) -> None:
        self.write(own_id())


async def main() -> None:
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:4])
    app = Application([("/", Handler)])
    app.listen(int(sys.argv[1]), HOST, ssl_options=context)
    await asyncio.Event().wait()


asyncio.run(main())
