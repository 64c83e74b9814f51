"""waitress: its connections, when the worker ends."""

from types import ModuleType
from typing import Any

from ..child import Child

# What has been idle for so long is closed then; one that has just been accepted has so long to say its request.
IDLE_S = 0.2


def adapt(module: ModuleType, child: Child) -> None:
    """Replace methods of `BaseWSGIServer` and of the tasks that answer."""
    from waitress.task import Task

    server_class: Any = module.BaseWSGIServer
    plain_init = server_class.__init__
    plain_maintenance = server_class.maintenance

    def init(self: Any, *args: Any, **options: Any) -> None:
        plain_init(self, *args, **options)
        child.when_quiet(lambda: _look_at_once(self))

    def maintenance(self: Any, now: float) -> None:
        plain_maintenance(self, now)
        if child.quiet.is_set():
            for channel in list(self.active_channels.values()):
                # waitress's own look, with a short timeout, would cut off what is slow to come or to go.
                busy = channel.requests or channel.request is not None or channel.total_outbufs_len
                if not busy and channel.last_activity < now - IDLE_S:
                    channel.will_close = True

    plain_build_response_header = Task.build_response_header

    def build_response_header(self: Any) -> Any:
        if child.quiet.is_set():
            self.request.headers["CONNECTION"] = "close"
        return plain_build_response_header(self)

    server_class.__init__ = init
    server_class.maintenance = maintenance
    Task.build_response_header = build_response_header


def _look_at_once(server: Any) -> None:
    """Have `maintenance` called now, and in each turn of its loop from now on."""
    server.adj.cleanup_interval = 0
    server.next_channel_cleanup = 0
    server.pull_trigger()
