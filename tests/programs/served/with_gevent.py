"""gevent's pywsgi. Arguments: port, and a certificate and its key for TLS."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

from gevent.pywsgi import WSGIServer  # noqa: E402

from programs.served.apps import HOST, wsgi  # noqa: E402

tls = dict(zip(("certfile", "keyfile"), sys.argv[2:4], strict=False))
WSGIServer((HOST, int(sys.argv[1])), wsgi, log=None, **tls).serve_forever()
