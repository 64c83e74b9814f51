"""A primary whose script ends without run().

Arguments: how it ends, and the status with which its excepthook ends it if it has one.
"""

import atexit
import os
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
    if sys.argv[2:]:
        sys.excepthook = lambda *_: os._exit(int(sys.argv[2]))
    if sys.argv[1] == "raises":
        cluster.dispatch(5)
        raise LookupError("in the primary")
    if sys.argv[1] == "exits":
        sys.exit(5)
else:
    if sys.argv[1] in ("raises", "waits"):
        time.sleep(60)
    time.sleep(0.1)
