"""aiohttp, with a server of its own: `pycluster run aiohttp_app.py`, with another port than 8000 if you like."""

import os
import sys

from aiohttp import web


async def hello(request):
    return web.json_response({"worker": os.getpid()})


app = web.Application()
app.router.add_get("/", hello)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000, print=None)
