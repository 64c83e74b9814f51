"""twisted.web. Arguments: port, and a certificate and its key for TLS."""

import sys

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from programs.served.apps import HOST, own_id


class Answer(Resource):  # type: ignore[misc]
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return own_id()


if len(sys.argv) > 2:
    from twisted.internet.ssl import DefaultOpenSSLContextFactory

    context = DefaultOpenSSLContextFactory(sys.argv[3], sys.argv[2])
    reactor.listenSSL(int(sys.argv[1]), Site(Answer()), context, interface=HOST)
else:
    reactor.listenTCP(int(sys.argv[1]), Site(Answer()), interface=HOST)
reactor.run()
