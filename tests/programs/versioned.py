"""A service of which a test writes new versions. Arguments: number of workers, port, settings as JSON, how to run.

SIGUSR1 asks for a reload that has little time to succeed: as much as an interpreter needs to start and to listen where
both cores are under stress. SIGUSR2 disconnects the oldest worker. A worker that is asked for /slow answers when one
more byte has come.
"""

import asyncio
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import part  # type: ignore[import-not-found]

from programs.facts import tell, tell_events
from pycluster import SCHED_NONE, cluster

VERSION = 0
ENV = None
SOON_S = 6.0


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert cluster.worker is not None
        if self.path == "/slow":
            tell("busy")
            self.connection.recv(1)
        self.send_response(200)
        self.end_headers()
        os.write(2, b"e" * int(os.environ.get("NOISE", "0")))
        self.wfile.write(b"version %d.%d worker %d" % (VERSION, part.VERSION, cluster.worker.id))

    def log_message(self, *args: object) -> None:
        pass


if cluster.is_primary:
    tell_events()
    signal.signal(signal.SIGUSR1, lambda number, frame: cluster.reload(SOON_S))
    signal.signal(signal.SIGUSR2, lambda number, frame: cluster.workers[min(cluster.workers)].disconnect())
    if "SHARED" in os.environ:
        cluster.scheduling_policy = SCHED_NONE
    cluster.setup_primary(**json.loads(sys.argv[3]))
    for _ in range(int(sys.argv[1])):
        cluster.fork(ENV)
    tell("ready", version=VERSION, directory=os.getcwd(), arguments=sys.argv[1:], name=__name__, file=__file__)
    if sys.argv[4] == "run":
        cluster.run()
    elif sys.argv[4] == "serve":
        asyncio.run(cluster.serve())
    if sys.argv[4] != "implicitly":
        tell("over", workers=list(cluster.workers))
elif "IDLE" in os.environ:
    signal.pause()
elif "BROKEN" in os.environ:
    sys.exit(3)
else:
    HTTPServer(("127.0.0.1", int(sys.argv[2])), Answer).serve_forever()
