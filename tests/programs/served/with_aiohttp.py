"""aiohttp. Arguments: port, and a certificate and its key for TLS."""

import ssl
import sys

from aiohttp import web

from programs.served.apps import HOST, own_id


async def answer(request: web.Request) -> web.Response:
    return web.Response(body=own_id())


context = None
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[2:4])
app = web.Application()
app.router.add_get("/", answer)
web.run_app(app, host=HOST, port=int(sys.argv[1]), ssl_context=context, print=None)
