"""bjoern, which accepts in C. Arguments: port."""

import sys

import bjoern

from programs.served.apps import HOST, wsgi

bjoern.run(wsgi, HOST, int(sys.argv[1]))
