"""Workers that are just about to start. Argument: the start method."""

import sys

from programs.facts import tell
from pycluster import cluster

if cluster.is_primary:
    cluster.setup_primary(start_method=sys.argv[1])
    for _ in range(4):
        cluster.fork()
    # Told in the dispatch, when run() answers signals, and before any worker can be online.
    cluster.once("fork", lambda worker: tell("started"))
    cluster.run()
else:
    cluster.listen(("127.0.0.1", 0)).accept()
