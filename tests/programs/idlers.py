"""Workers that listen on nothing. SIGUSR1 asks for a reload. Arguments: how many, and how long they have to come up."""

import signal
import sys

from programs.facts import tell_events
from pycluster import cluster

if cluster.is_primary:
    tell_events()
    signal.signal(signal.SIGUSR1, lambda number, frame: cluster.reload(float(sys.argv[2])))
    for _ in range(int(sys.argv[1])):
        cluster.fork()
    cluster.run()
else:
    signal.pause()
