"""A service of which a test writes new versions. Arguments: number of workers, port, settings as JSON."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from programs.facts import tell, tell_events
from pycluster import cluster

VERSION = 0


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert cluster.worker is not None
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"version %d worker %d" % (VERSION, cluster.worker.id))

    def log_message(self, *args: object) -> None:
        pass


if cluster.is_primary:
    tell_events()
    cluster.setup_primary(**json.loads(sys.argv[3]))
    for _ in range(int(sys.argv[1])):
        cluster.fork()
    tell("ready", primary=os.getpid())
    cluster.run()
    tell("over", workers=list(cluster.workers))
else:
    HTTPServer(("127.0.0.1", int(sys.argv[2])), Answer).serve_forever()
