"""Flask's development server, which is werkzeug's. Arguments: port, and a certificate and its key for TLS."""

import logging
import sys

import flask

from programs.served.apps import HOST, own_id

app = flask.Flask(__name__)


@app.get("/")  # type: ignore[untyped-decorator]
def answer() -> flask.Response:
    return flask.Response(own_id())


logging.getLogger("werkzeug").setLevel("ERROR")
app.run(HOST, int(sys.argv[1]), ssl_context=tuple(sys.argv[2:4]) or None)
