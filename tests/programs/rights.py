"""A worker that runs as another user. Arguments: uid, gid, a port that only root may bind."""

import encodings.idna  # noqa: F401  (bind uses it, and the interpreter may lie where only root reads)
import os
import sys

from programs.facts import tell, tell_events
from pycluster import cluster

if cluster.is_primary:
    tell_events()
    cluster.setup_primary(uid=int(sys.argv[1]), gid=int(sys.argv[2]))
    cluster.fork()
    cluster.run()
    tell("primary", uid=os.getuid())
else:
    sock = cluster.listen(("127.0.0.1", int(sys.argv[3])))
    tell("worker", uids=os.getresuid(), gids=os.getresgid(), groups=os.getgroups(), port=sock.getsockname()[1])
