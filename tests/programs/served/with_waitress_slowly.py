"""waitress, with an answer that is larger than what the sockets take. Arguments: port, and the size of the body."""

import sys
from collections.abc import Callable
from typing import Any

import waitress

from programs.served.apps import HOST

PORT, SIZE = map(int, sys.argv[1:])


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(SIZE))])
    return [bytes(SIZE)]


waitress.serve(app, host=HOST, port=PORT, outbuf_high_watermark=2 * SIZE)
