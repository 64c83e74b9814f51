"""Workers that work in a terminal until Ctrl-C is typed there. Arguments: how the primary runs, port."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

from programs.facts import tell, tell_events
from pycluster import cluster


async def serve() -> None:
    await cluster.serve()


async def serve_streams() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", int(sys.argv[2]))
    await server.serve_forever()


def work(way: str) -> None:
    if way == "http":
        HTTPServer(("127.0.0.1", int(sys.argv[2])), BaseHTTPRequestHandler).serve_forever()
    elif way == "asyncio":
        asyncio.run(serve_streams())
    elif way == "sleep":
        time.sleep(60)
    elif way == "wait":
        threading.Event().wait()
    elif way == "child":
        subprocess.run(["sleep", "60"], check=False)


if cluster.is_primary:
    tell_events()
    for way in ("http", "asyncio", "sleep", "wait", "child"):
        cluster.fork({"WAY": way})
    tell("ready", foreground=os.tcgetpgrp(0) == os.getpgrp())
    if sys.argv[1] == "run":
        cluster.run()
    elif sys.argv[1] == "serve":
        asyncio.run(serve())
    tell("over")
else:
    tell("works")
    work(os.environ["WAY"])
