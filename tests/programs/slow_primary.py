"""A primary that sleeps after each fork, so that the worker has said all and ended before fork() returns."""

import os
import time

from programs.facts import tell_events
from pycluster import cluster

if cluster.is_primary:
    os.register_at_fork(after_in_parent=lambda: time.sleep(0.15))
    tell_events()
    cluster.fork()
    cluster.fork()
    cluster.run()
