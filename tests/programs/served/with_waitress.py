"""waitress. Arguments: port."""

import sys

import waitress

from programs.served.apps import HOST, wsgi

waitress.serve(wsgi, host=HOST, port=int(sys.argv[1]))
