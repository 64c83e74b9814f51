"""Workers that end in many ways. Arguments: one way for each worker."""

import os
import signal
import sys
import time

from programs.facts import tell, tell_events
from pycluster import cluster


def end(way: str) -> None:
    if way == "returns":
        return
    if way == "raises":
        raise LookupError("nothing here")
    if way == "waits":
        tell("waiting")
        time.sleep(60)
    if way == "spins":
        tell("waiting")
        while True:
            pass
    if way.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[way])
        time.sleep(60)
    if way == "message":
        sys.exit("this is why")
    sys.exit(int(way))


if cluster.is_primary:
    tell_events()
    for way in sys.argv[1:]:
        cluster.fork({"WAY": way})
    cluster.run()
    tell("over", workers=list(cluster.workers))
else:
    end(os.environ["WAY"])
