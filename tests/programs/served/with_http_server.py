"""http.server, one connection after the other. Arguments: port, and a certificate and its key for TLS."""

import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from programs.served.apps import HOST, own_id


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(own_id())))
        self.end_headers()
        self.wfile.write(own_id())

    def log_message(self, format: str, *args: object) -> None:
        pass


server = HTTPServer((HOST, int(sys.argv[1])), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[2:4])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
