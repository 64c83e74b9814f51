"""A primary without workers: what it does at once."""

from collections.abc import Callable
from typing import Any

from programs.facts import tell
from pycluster import cluster

cluster.run()
tell("ran")
cluster.disconnect(lambda: tell("disconnected"))
tell("asked")
cluster.dispatch()
cluster.setup_primary(silent=True)
cluster.on("setup", lambda settings: tell("setup", silent=settings.silent))
tell("set up", silent=cluster.settings.silent)
cluster.dispatch()
tell("workers", workers=dict(cluster.workers), worker=cluster.worker)


def attempt(change: Callable[[], object]) -> None:
    try:
        change()
    except (TypeError, AttributeError) as error:
        tell("refused", error=type(error).__name__)


view: Any = cluster.workers
settings: Any = cluster.settings
attempt(lambda: view.__setitem__(1, None))
attempt(lambda: view.clear())
attempt(lambda: setattr(settings, "silent", False))
attempt(lambda: setattr(cluster, "settings", None))
attempt(lambda: setattr(cluster, "workers", {}))
