"""The first code of a spawned worker, run as a file by the interpreter that `start.spawn` starts."""

import json
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pycluster.protocol import Start


def main() -> NoReturn:
    """Become the worker that the environment describes, and run its script."""
    told_as_json = os.environ.pop("PYCLUSTER_WORKER")  # at once: whoever this process starts is no worker
    told = json.loads(told_as_json)
    # Before any other import: this directory, which came first as the directory of the script, is nobody's to search.
    sys.path[:] = told["path"]
    import signal

    import msgspec

    from pycluster import protocol, start

    start.leave_interrupts_to_the_primary()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    protocol.expect_version(told.get("takeover"))
    become_worker(msgspec.json.decode(told_as_json, type=protocol.Start))


def become_worker(told: "Start") -> NoReturn:
    """In a process that knows nothing yet: be the worker that is described, and run its script."""
    from pycluster import _cluster, native
    from pycluster.cluster import cluster
    from pycluster.counters import rejoin
    from pycluster.settings import Settings

    settings = Settings().merged(told.settings)
    _cluster.attach_region(told.region, told.version, settings.max_workers, settings.max_counters)
    for counter in cluster._counters.values():
        rejoin(counter, settings.max_counters)
    os.set_inheritable(told.channel, False)
    cluster._policy = told.policy
    child = cluster._become_worker(told.id, told.slot, told.index, native.Socket(fileno=told.channel), settings)
    child.start()
    child.run(told.script, told.args)


if __name__ == "__main__":
    main()
