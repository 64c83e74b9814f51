"""A server script as uvicorn's documentation has it. Arguments: port."""

import sys

import uvicorn

from programs.web_apps import asgi

uvicorn.run(asgi, host="127.0.0.1", port=int(sys.argv[1]), log_level="info")
