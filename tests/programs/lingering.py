"""A worker that ends, and has sent the primary a connection that lingers when it is closed. Argument: how it is sent.

Nobody reads what the connection has not sent yet.
"""

import array
import contextlib
import os
import socket
import struct
import sys

from pycluster import cluster, protocol
from pycluster.channel import CONTROL, MESSAGE

LINGER_S = 3600
BIND = protocol.Bind(10**6, int(socket.AF_INET6), int(socket.SOCK_STREAM), ("::1", 0))
RUBBISH = b"\xc1"
NIL = b"\xc0"
# The kind of the frame, its payload, and whether it announces a descriptor.
WAYS = {
    "a message that nobody hears": (MESSAGE, NIL, True),
    "a message that is none": (MESSAGE, RUBBISH, True),
    "a request that takes none": (CONTROL, protocol.encode(protocol.Release(1)), True),
    "a request that is none": (CONTROL, RUBBISH, True),
    "a bind that is refused": (CONTROL, protocol.encode(BIND), True),
    "a message that announces none": (MESSAGE, NIL, False),
}


def lingering(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(2**20))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    return sock


if cluster.is_primary:
    server = socket.create_server(("127.0.0.1", 0))
    cluster.on("fork", lambda worker: worker.on("error", lambda error: None))
    cluster.fork({"SERVER": str(server.getsockname()[1])})
    cluster.run()
else:
    assert cluster._child is not None
    kind, payload, announced = WAYS[sys.argv[1]]
    frame = len(payload).to_bytes(4, "little") + bytes([kind, announced, 0, 0]) + payload
    with socket.socket(fileno=os.dup(cluster._child._channel.fileno())) as channel:
        with lingering(("127.0.0.1", int(os.environ["SERVER"]))) as sock:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
            channel.sendmsg([frame[:1]], rights)
        channel.sendall(frame[1:])  # now the primary is the last one that closes it
    os._exit(0)
