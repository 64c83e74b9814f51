"""A worker's program parses a request with http.server's handler, as many do, which then has no connection."""

import io
from http.server import BaseHTTPRequestHandler

from programs.facts import tell
from pycluster import cluster


class Request(BaseHTTPRequestHandler):
    def __init__(self, text: bytes) -> None:
        self.rfile = io.BufferedReader(io.BytesIO(text))
        self.raw_requestline = self.rfile.readline()
        self.parse_request()


if cluster.is_primary:
    cluster.fork()
    cluster.run()
else:
    request = Request(b"GET /path HTTP/1.1\r\nHost: here\r\n\r\n")
    tell("parsed", path=request.path, host=request.headers["Host"])
