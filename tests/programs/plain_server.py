"""A single-process server that knows nothing of pycluster. Arguments: port."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"process %d\n" % os.getpid())

    def log_message(self, *args: object) -> None:
        pass


modules = [name for name in ("rich", "watchfiles", "uvicorn", "asyncio") if name in sys.modules]
print(json.dumps({"event": "serves", "pid": os.getpid(), "modules": modules}), flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
