"""A worker that listens, and ends, while its primary is busy with something else."""

import os
import select
import socket

from programs.facts import tell_events
from pycluster import Worker, cluster, protocol

if cluster.is_primary:
    tell_events()
    online, heard_online = os.pipe()

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        os.write(heard_online, b".")
        pidfd = os.pidfd_open(worker.process.pid)
        select.select([pidfd], [], [], 10)
        os.close(pidfd)

    cluster.fork({"ONLINE": str(online)})
    cluster.run()
else:
    os.read(int(os.environ["ONLINE"]), 1)
    child = cluster._child
    assert child is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        bind = protocol.Bind(1, sock.family, sock.type, ("127.0.0.1", 0))
        child._channel.send_control(protocol.encode(bind), sock.fileno())
    os._exit(0)
