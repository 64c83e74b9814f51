"""Workers that answer lines under `run()`. Arguments: how many, port."""

import sys

from programs.facts import tell_events
from programs.servers import keep_alive
from pycluster import cluster

if cluster.is_primary:
    tell_events()
    for _ in range(int(sys.argv[1])):
        cluster.fork()
    cluster.run()
else:
    assert cluster.worker is not None
    keep_alive(int(sys.argv[2]), f"worker {cluster.worker.id}")
