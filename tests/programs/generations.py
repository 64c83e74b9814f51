"""Children that fork children, and so on. Arguments: the start method, whose they are, how many, a port.

Whose: "primary", or "worker" for a second one, which is started when the primary's balancer runs.
"""

import os
import sys

from programs.facts import tell
from pycluster import Worker, cluster


def beget(generations: int) -> None:
    """Fork a child, which forks its own, and wait for it."""
    if generations == 0:
        return
    child = os.fork()
    if child == 0:
        tell("born", left=generations - 1)
        beget(generations - 1)
        os._exit(0)
    os.waitpid(child, 0)


method, whose, count, port = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if cluster.is_primary:

    @cluster.on("listening")
    def on_listening(worker: Worker, address: object) -> None:
        if whose == "primary":
            beget(count)
            worker.disconnect()
        elif worker.id == 1:
            cluster.fork()

    @cluster.on("disconnect")
    def on_disconnect(worker: Worker) -> None:
        cluster.disconnect()

    cluster.setup_primary(start_method=method)
    cluster.fork()
    cluster.run()
else:
    listener = cluster.listen(("127.0.0.1", port))
    if cluster.worker is not None and cluster.worker.id == 2:
        beget(count)
        cluster.worker.disconnect()
    listener.accept()
