"""hypercorn, in a loop of the program's own. Arguments: port, and a certificate and its key for TLS."""

import asyncio
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config

from programs.served.apps import HOST, asgi

config = Config()
config.bind = [f"{HOST}:{sys.argv[1]}"]
config.loglevel = "WARNING"
config.keep_alive_timeout = 60
if len(sys.argv) > 2:
    config.certfile, config.keyfile = sys.argv[2:4]
asyncio.run(serve(asgi, config))
