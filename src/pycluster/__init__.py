"""Node.js's cluster module for Python: one script, many workers, shared ports."""

from ._cluster import Counter
from .cluster import SCHED_NONE, SCHED_RR, Cluster, cluster, process
from .counters import ClusterStats, WorkerStats
from .errors import ChannelClosedError, ClusterError, NotPrimaryError, NotWorkerError, ReloadError
from .settings import Settings
from .watch import Hang
from .worker import Address, Worker, WorkerProcess

__all__ = [
    "SCHED_NONE",
    "SCHED_RR",
    "Address",
    "ChannelClosedError",
    "Cluster",
    "ClusterError",
    "ClusterStats",
    "Counter",
    "Hang",
    "NotPrimaryError",
    "NotWorkerError",
    "ReloadError",
    "Settings",
    "Worker",
    "WorkerProcess",
    "WorkerStats",
    "cluster",
    "process",
]
