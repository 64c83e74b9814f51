"""Workers that are ended at the moment in which they are forked. Argument: how."""

import sys
import time

from programs.facts import tell, tell_events
from pycluster import cluster

if cluster.is_primary:
    tell_events()
    workers = [cluster.fork() for _ in range(12)]
    tell("states", states=[worker.state for worker in workers])
    if sys.argv[1] == "all":
        cluster.disconnect(lambda: tell("callback"))
    for worker in workers:
        if sys.argv[1] == "disconnect":
            worker.disconnect()
        elif sys.argv[1] == "kill":
            worker.kill()
    cluster.run()
else:
    time.sleep(60)
