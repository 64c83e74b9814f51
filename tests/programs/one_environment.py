"""Workers are forked with one dictionary, which changes; each of them crashes once, and another one comes."""

import os
import sys

from programs.facts import tell
from pycluster import cluster

SHARDS = ["zero", "one"]

if cluster.is_primary:
    cluster.setup_primary(respawn="on-failure")
    env = {}
    for shard in SHARDS:
        env["SHARD"] = shard
        cluster.fork(env)
    env["SHARD"] = "none"
    cluster.run()
else:
    tell("shard", shard=os.environ["SHARD"])
    assert cluster.worker is not None
    sys.exit(cluster.worker.id <= len(SHARDS))
