"""socketserver with a thread per connection. Arguments: port."""

import socketserver
import sys

from programs.served.apps import HOST, own_id


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + own_id())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server((HOST, int(sys.argv[1])), Handler).serve_forever()
