"""gevent: its sockets, and its pywsgi.

Each of gevent's sockets has one of the interpreter's own class in it, and its servers accept from that.
"""

from types import ModuleType
from typing import Any

from .. import descriptors, listener
from ..child import Child
from . import idle


def share_ports(module: ModuleType, child: Child) -> None:
    """Replace methods of the sockets inside of gevent's."""
    inner_class: Any = module._wrefsocket
    plain_close = inner_class.close
    plain_detach = inner_class.detach

    def close(self: Any) -> None:
        shared = descriptors.find(self) if self.fileno() >= 0 else None
        if shared is None:
            plain_close(self)
        else:
            descriptors.close(shared, lambda: plain_close(self))

    def detach(self: Any) -> int:
        if shared := descriptors.find(self):
            descriptors.leave_open(shared)
        fd: int = plain_detach(self)
        return fd

    listener.replace_methods(inner_class)
    inner_class.close = close
    inner_class.detach = detach


def close_idle(module: ModuleType, child: Child) -> None:
    """Replace methods of `pywsgi.WSGIHandler`."""
    handler_class: Any = module.WSGIHandler
    plain_read_requestline = handler_class.read_requestline
    plain_read_request = handler_class.read_request

    def read_requestline(self: Any) -> Any:
        if getattr(self, "environ", None) is not None:  # not the first one
            idle.begin(self.socket)
        try:
            return plain_read_requestline(self)
        finally:
            idle.end(self.socket)

    def read_request(self: Any, requestline: Any) -> Any:
        result = plain_read_request(self, requestline)
        if child.quiet.is_set():
            self.close_connection = True
        return result

    handler_class.read_requestline = read_requestline
    handler_class.read_request = read_request
    idle.close_when_quiet(child)
