"""Forks that fail: out of descriptors, and past max_workers. The cluster goes on."""

import os
import resource
import time

from programs.facts import tell, tell_events
from pycluster import ClusterError, Worker, cluster


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


if cluster.is_primary:
    tell_events()
    cluster.setup_primary(max_workers=3, silent=True)
    cluster.fork()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for more in range(9):
        before = opened()
        # listdir has one descriptor of its own open when it counts.
        resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + more, hard))
        try:
            cluster.fork()
        except OSError as error:
            tell("refused", errno=error.errno, leaked=opened_later - before if (opened_later := opened()) else 0)
        else:
            tell("forked", more=more)
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cluster.fork()
    try:
        cluster.fork()
    except ClusterError as error:
        tell("full", text=str(error))
    online = 0

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        global online
        online += 1
        if online == 3:
            cluster.disconnect()

    cluster.run()
    tell("over")
else:
    time.sleep(60)
