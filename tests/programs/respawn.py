"""Workers that crash, and are forked again in the exit handler until there have been enough. Argument: how many."""

import os
import signal
import sys

from programs.facts import tell, tell_events
from pycluster import Worker, cluster

if cluster.is_primary:
    tell_events()
    left = int(sys.argv[1]) - 2

    @cluster.on("exit")
    def respawn(worker: Worker, code: int | None, signal: object) -> None:
        global left
        if left and not worker.exited_after_disconnect:
            left -= 1
            cluster.fork()

    cluster.fork()
    cluster.fork()
    cluster.run()
    tell("over", workers=list(cluster.workers))
else:
    assert cluster.worker is not None
    if cluster.worker.id % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)
