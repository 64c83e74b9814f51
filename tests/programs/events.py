"""One worker that listens on two ports and then is disconnected: what the primary hears, on worker and cluster.

Arguments: the ports.
"""

import sys
from typing import Any

from programs.facts import tell
from pycluster import Address, Worker, cluster

EVENTS = ("online", "listening", "message", "disconnect", "exit", "error")

if cluster.is_primary:

    def watch(emitter: Any, name: str, event: str) -> None:
        def handler(*args: Any) -> None:
            tell("heard", by=name, what=event, state=worker.state, args=[repr(arg) for arg in args])

        emitter.on(event, handler)

    for event in ("fork", *EVENTS):
        watch(cluster, "cluster", event)
    worker = cluster.fork()
    for event in EVENTS:
        watch(worker, "worker", event)
    tell("forked", state=worker.state)

    @cluster.on("listening")
    def on_listening(worker: Worker, address: Address) -> None:
        tell("address", fields=address, state=worker.state)
        if address.port == int(sys.argv[2]):
            worker.disconnect()

    cluster.run()
else:
    cluster.listen(("127.0.0.1", int(sys.argv[1])))
    cluster.listen(("127.0.0.1", int(sys.argv[2]))).accept()
