"""http.server, and the servers that are made of its handlers, such as werkzeug's."""

from types import ModuleType
from typing import Any

from ..child import Child
from . import idle


def adapt(module: ModuleType, child: Child) -> None:
    """Replace methods of `BaseHTTPRequestHandler`."""
    handler_class: Any = module.BaseHTTPRequestHandler
    plain_handle_one_request = handler_class.handle_one_request
    plain_parse_request = handler_class.parse_request
    plain_send_response = handler_class.send_response

    def handle_one_request(self: Any) -> None:
        if hasattr(self, "requestline"):  # not the first one
            idle.begin(self.connection)
        try:
            plain_handle_one_request(self)
        finally:
            idle.end(self.connection)

    def parse_request(self: Any) -> Any:
        idle.end(getattr(self, "connection", None))  # some use it to parse what has come in another way
        return plain_parse_request(self)

    def send_response(self: Any, *args: Any, **options: Any) -> None:
        plain_send_response(self, *args, **options)
        if child.quiet.is_set() and self.protocol_version >= "HTTP/1.1":
            self.send_header("Connection", "close")

    handler_class.handle_one_request = handle_one_request
    handler_class.parse_request = parse_request
    handler_class.send_response = send_response
    idle.close_when_quiet(child)
