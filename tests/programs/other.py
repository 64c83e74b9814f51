"""A script that is a worker's alone: what `setup_primary(exec=...)` names."""

import sys

from programs.facts import tell
from pycluster import cluster

tell("other", argv=sys.argv, is_worker=cluster.is_worker, name=__name__)
