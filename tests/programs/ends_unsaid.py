"""Workers that cannot say how they end: it stays in the worker. Arguments: "hook" or "stderr", and how they end."""

import os
import sys

from programs.facts import tell
from pycluster import Worker, cluster


def broken_hook(*error: object) -> None:
    raise LookupError("in the hook")


if cluster.is_primary:
    way, how = sys.argv[1:]
    if how == "starts badly":
        cluster.setup_primary(cwd="/nowhere/at all")
    if way == "hook":
        sys.excepthook = broken_hook
    else:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 2)

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", code=code, signal=signal)

    primary = os.getpid()
    try:
        cluster.fork()
        cluster.run()
    except BaseException as error:
        tell("unwound", error=repr(error), primary=os.getpid() == primary)
    finally:
        tell("over", primary=os.getpid() == primary)
elif sys.argv[2] == "raises":
    raise ValueError("in the worker")
else:
    sys.exit("this is why")
