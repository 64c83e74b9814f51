"""A temporary directory that nothing but the main module keeps: no functions, no classes, no run().

The first worker is forked by the script, the second one when that has ended, in the implicit run.
"""

import os
import tempfile

from programs.facts import tell
from pycluster import cluster

if cluster.is_primary:
    directory = tempfile.TemporaryDirectory()
    cluster.setup_primary(respawn="on-failure")
    cluster.fork({"DIRECTORY": directory.name})
else:
    tell("works", there=os.path.isdir(os.environ["DIRECTORY"]))
    if cluster.worker is not None and cluster.worker.id == 1:
        os._exit(1)
