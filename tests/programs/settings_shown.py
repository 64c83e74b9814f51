"""A worker that shows what it was started with. Arguments: settings as JSON, then the environment for fork as JSON."""

import json
import os
import sys

from programs.facts import tell
from pycluster import SCHED_NONE, Worker, cluster

if cluster.is_primary:

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        pipes = worker.process.stdin, worker.process.stdout, worker.process.stderr
        read = [pipe and pipe.read().decode() for pipe in pipes[1:]]
        tell("exit", code=code, pipes=[pipe is not None for pipe in pipes], stdout=read[0], stderr=read[1])

    cluster.scheduling_policy = SCHED_NONE
    cluster.setup_primary(**json.loads(sys.argv[1]))
    worker = cluster.fork(json.loads(sys.argv[2]))
    if worker.process.stdin is not None:
        worker.process.stdin.write(b"to the worker\n")
        worker.process.stdin.close()
    cluster.run()
else:
    tell(
        "shown",
        argv=sys.argv,
        policy=cluster.scheduling_policy,
        cwd=os.getcwd(),
        file=__file__,
        name=__name__,
        env=os.environ.get("GIVEN"),
        new=os.environ.get("NEW"),
        kept=os.environ.get("KEPT"),
        ours=[name for name in os.environ if name.startswith("PYCLUSTER")],
        optimize=sys.flags.optimize,
        bytes=sys.flags.bytes_warning,
        warnings=sys.warnoptions,
        main=sys.modules["__main__"].__dict__ is globals(),
        stdin=sys.stdin.read() if json.loads(sys.argv[1]).get("stdio") else None,
    )
    print("on stdout", flush=True)
    print("on stderr", file=sys.stderr, flush=True)
