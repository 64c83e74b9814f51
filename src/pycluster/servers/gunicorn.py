"""gunicorn: its arbiter listens, and forks processes that accept.

Nothing can be handed to those: they are no workers. Where the kernel picks who accepts, each of them gets a socket of
its own, as gunicorn's `reuse_port` does it.
"""

import signal
from types import ModuleType
from typing import Any

from ..child import Child
from ..cluster import SCHED_NONE, cluster
from ..errors import ClusterError


def adapt(module: ModuleType, child: Child) -> None:
    """Replace methods of `Arbiter`."""
    arbiter_class: Any = module.Arbiter
    plain_start = arbiter_class.start
    plain_run = arbiter_class.run

    def start(self: Any) -> None:
        if not self.cfg.reuse_port:
            if cluster.scheduling_policy != SCHED_NONE:
                raise ClusterError(
                    "gunicorn accepts in processes of its own, which cannot be handed connections: set its reuse_port, "
                    "or cluster.scheduling_policy to SCHED_NONE; or let `pycluster serve` serve the app"
                )
            self.cfg.set("reuse_port", True)
        plain_start(self)

    def run(self: Any) -> None:
        with child.ended_by(lambda: signal.raise_signal(signal.SIGTERM)):
            plain_run(self)

    arbiter_class.start = start
    arbiter_class.run = run
