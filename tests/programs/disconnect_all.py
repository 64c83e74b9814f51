"""Workers of many kinds that are disconnected all at once, with a callback."""

import os
import sys
import time

from programs.facts import tell, tell_events
from pycluster import Worker, cluster

if cluster.is_primary:
    tell_events()
    online = 0

    @cluster.on("online")
    def on_online(worker: Worker) -> None:
        global online
        online += 1
        if online == 3:
            cluster.disconnect(lambda: tell("callback", connected=[w.is_connected() for w in cluster.workers.values()]))

    for way in ("listens", "sleeps", "spins"):
        cluster.fork({"WAY": way})
    cluster.run()
    tell("over")
elif os.environ["WAY"] == "listens":
    cluster.listen(("127.0.0.1", int(sys.argv[1]))).accept()
elif os.environ["WAY"] == "sleeps":
    time.sleep(60)
else:
    while True:
        pass
