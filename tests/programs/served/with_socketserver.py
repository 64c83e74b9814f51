"""socketserver with a thread per connection. Arguments: port, and a certificate and its key for TLS."""

import socketserver
import ssl
import sys

from programs.served.apps import HOST, own_id


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + own_id())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


server = Server((HOST, int(sys.argv[1])), Handler)
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[2:4])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
