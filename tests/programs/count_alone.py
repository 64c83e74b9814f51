"""Counting in a process that has no workers."""

from programs.facts import tell
from pycluster import cluster

hits = cluster.counter("hits")
hits.add()
hits.add(4)
try:
    cluster.setup_primary(max_counters=7)
    fixed = ""
except ValueError as exception:
    fixed = f"ValueError: {exception}"
cluster.setup_primary(max_counters=128)  # what it is already
tell(
    "facts",
    value=hits.value,
    by_worker=dict(hits.by_worker),
    same=cluster.counter("hits") is hits,
    workers=cluster.stats().workers,
    fixed=fixed,
)
