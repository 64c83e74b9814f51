"""cheroot. Arguments: port, and a certificate and its key for TLS."""

import sys

from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server

from programs.served.apps import HOST, wsgi

server = Server((HOST, int(sys.argv[1])), wsgi)
server.timeout = 60
if len(sys.argv) > 2:
    server.ssl_adapter = BuiltinSSLAdapter(*sys.argv[2:4])
server.safe_start()
