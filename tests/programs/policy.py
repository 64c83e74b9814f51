"""The scheduling policy: what it is, what it takes, and when it is frozen. Argument: what freezes it."""

import sys
from typing import Any

from programs.facts import tell
from pycluster import SCHED_NONE, SCHED_RR, cluster


def assign(policy: Any) -> None:
    try:
        cluster.scheduling_policy = policy
    except (ValueError, RuntimeError) as error:
        tell("refused", policy=policy, error=type(error).__name__, text=str(error))
    tell("policy", policy=cluster.scheduling_policy)


if cluster.is_primary:
    tell(
        "default", policy=cluster.scheduling_policy, names=[SCHED_RR, SCHED_NONE, cluster.SCHED_RR, cluster.SCHED_NONE]
    )
    assign("fair")
    assign(SCHED_NONE)
    assign(SCHED_RR)
    if sys.argv[1] == "fork":
        cluster.fork()
    else:
        cluster.setup_primary()
    assign(SCHED_NONE)
    cluster.run()
