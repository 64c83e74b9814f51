"""A worker that runs as another user. Arguments: start method, uid (-1: its own), gid, a port that only root binds."""

import encodings.idna  # noqa: F401  (bind uses it, and the interpreter may lie where only root reads)
import os
import sys

from programs.facts import tell, tell_events
from pycluster import cluster

if cluster.is_primary:
    tell_events()
    uid = int(sys.argv[2])
    cluster.setup_primary(start_method=sys.argv[1], uid=None if uid < 0 else uid, gid=int(sys.argv[3]))
    if sys.argv[1] == "forkserver":
        cluster.setup_primary(preload=["encodings.idna", "programs.facts"])
    cluster.fork()
    cluster.run()
    tell("primary", uid=os.getuid())
else:
    sock = cluster.listen(("127.0.0.1", int(sys.argv[4])))
    tell("worker", uids=os.getresuid(), gids=os.getresgid(), groups=os.getgroups(), port=sock.getsockname()[1])
