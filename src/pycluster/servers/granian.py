"""granian: it binds by itself, with SO_REUSEPORT, and serves from processes of its own; so it only has to be ended."""

import signal
from types import ModuleType
from typing import Any

from ..child import Child


def adapt(module: ModuleType, child: Child) -> None:
    """Replace a method of `AbstractServer`."""
    server_class: Any = module.AbstractServer
    plain_serve = server_class.serve

    def serve(self: Any, *args: Any, **options: Any) -> Any:
        with child.ended_by(lambda: signal.raise_signal(signal.SIGTERM)):
            return plain_serve(self, *args, **options)

    server_class.serve = serve
