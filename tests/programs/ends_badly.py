"""Ends with a status. Arguments: status, then optionally a port to listen on first."""

import socket
import sys

if len(sys.argv) > 2:
    server = socket.create_server(("127.0.0.1", int(sys.argv[2])))
sys.exit(int(sys.argv[1]))
