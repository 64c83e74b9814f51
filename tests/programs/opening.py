"""Eight workers that are disconnected while they still open listeners. Arguments: the ports."""

import sys
import time

from programs.facts import tell, tell_events
from pycluster import Address, Worker, cluster

if cluster.is_primary:
    tell_events()

    @cluster.on("listening")
    def on_listening(worker: Worker, address: Address) -> None:
        worker.disconnect()

    for _ in range(8):
        cluster.fork()
    cluster.run()
else:
    sockets = [cluster.listen(("127.0.0.1", int(port))) for port in sys.argv[1:]]
    tell("listens", count=len(sockets))
    time.sleep(60)
