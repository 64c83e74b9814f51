"""A primary whose script ends without run(). Argument: how it ends."""

import atexit
import sys
import time

from programs.facts import tell, tell_events
from pycluster import cluster

if cluster.is_primary:
    tell_events()
    atexit.register(tell, "atexit")
    cluster.fork()
    cluster.fork()
    tell("end of script")
    if sys.argv[1] == "raises":
        cluster.dispatch(5)
        raise LookupError("in the primary")
    if sys.argv[1] == "exits":
        sys.exit(5)
else:
    if sys.argv[1] in ("raises", "waits"):
        time.sleep(60)
    time.sleep(0.1)
