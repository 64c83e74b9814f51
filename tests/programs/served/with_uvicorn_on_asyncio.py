"""uvicorn on asyncio. Arguments: port, and a certificate and its key for TLS."""

import sys

import uvicorn

from programs.served.apps import HOST, asgi

certificate, key = [*sys.argv[2:4], None, None][:2]
uvicorn.run(
    asgi,
    host=HOST,
    port=int(sys.argv[1]),
    loop="asyncio",
    timeout_keep_alive=60,
    ssl_certfile=certificate,
    ssl_keyfile=key,
    log_level="warning",
)
