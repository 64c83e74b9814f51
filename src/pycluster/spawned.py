"""The first code of a spawned worker, run as a file by the interpreter that `start.spawn` starts."""

import json
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Become the worker that the environment describes, and run its script."""
    told_as_json = os.environ.pop("PYCLUSTER_WORKER")  # at once: whoever this process starts is no worker
    # Before any other import: this directory, which came first as the directory of the script, is nobody's to search.
    sys.path[:] = json.loads(told_as_json)["path"]
    import signal

    import msgspec

    from pycluster import _cluster, native, protocol, start
    from pycluster.cluster import cluster
    from pycluster.settings import Settings

    start.leave_interrupts_to_the_primary()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    told = msgspec.json.decode(told_as_json, type=protocol.Start)
    if told.takeover != protocol.TAKEOVER_VERSION:
        raise RuntimeError("the primary runs another version of pycluster; start the cluster anew")
    settings = Settings().merged(told.settings)
    _cluster.attach_region(told.region, told.version, settings.max_workers, settings.max_counters)
    os.set_inheritable(told.channel, False)
    child = cluster._become_worker(told.id, told.slot, told.index, native.Socket(fileno=told.channel), settings)
    child.start()
    child.run(told.script, told.args)


if __name__ == "__main__":
    main()
