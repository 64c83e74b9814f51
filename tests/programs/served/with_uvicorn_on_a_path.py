"""uvicorn on a Unix socket. Arguments: path."""

import sys

import uvicorn

from programs.served.apps import asgi

uvicorn.run(asgi, uds=sys.argv[1], log_level="warning")
