"""twisted.web. Arguments: port."""

import sys

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from programs.served.apps import HOST, own_id


class Answer(Resource):  # type: ignore[misc]
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return own_id()


reactor.listenTCP(int(sys.argv[1]), Site(Answer()), interface=HOST)
reactor.run()
