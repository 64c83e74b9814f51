"""bjoern: it accepts in C, and runs no handler of a signal that Python has, so that nothing would end it."""

import os
import signal
from types import ModuleType
from typing import Any

from .. import descriptors
from ..child import Child
from ..errors import ClusterError


def adapt(module: ModuleType, child: Child) -> None:
    """Replace `server_run`."""
    bjoern: Any = module
    plain_server_run = bjoern.server_run

    def server_run(sock: Any, *args: Any, **options: Any) -> None:
        if descriptors.receiver_of(sock) is not None:
            raise ClusterError(
                "bjoern accepts in C, and cannot be handed connections: set cluster.scheduling_policy to SCHED_NONE"
            )
        child.worker.on("disconnect", lambda: os.kill(os.getpid(), signal.SIGINT))  # when its connections are closed
        plain_server_run(sock, *args, **options)

    bjoern.server_run = server_run
