"""Deprecated names: each warns, and means what its successor means."""

import warnings
from collections.abc import Callable

from programs.facts import tell
from pycluster import Worker, cluster


def warned(name: str, function: Callable[[], object]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function()
    tell("warned", name=name, value=value, by=[(w.category.__name__, w.filename == __file__) for w in caught])


warned("is_master", lambda: cluster.is_master)
if cluster.is_primary:
    warned("setup_master", lambda: cluster.setup_master(graceful_timeout=7))
    tell("settings", graceful_timeout=cluster.settings.graceful_timeout)

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        warned("suicide", lambda: worker.suicide)

    cluster.fork()
    cluster.run()
