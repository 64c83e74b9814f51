"""ssl: a listening socket that is wrapped, as http.server's users do it.

It receives a byte from what is not connected, to see that nothing has come in the clear. Out of a handoff channel that
would be a connection.
"""

import errno
import os
from types import ModuleType
from typing import Any

from .. import descriptors
from ..child import Child


def adapt(module: ModuleType, child: Child) -> None:
    """Replace a method of `SSLSocket`."""
    socket_class: Any = module.SSLSocket
    plain_recv = socket_class.recv

    def recv(self: Any, *args: Any, **options: Any) -> Any:
        if self._sslobj is None and descriptors.find(self) is not None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return plain_recv(self, *args, **options)

    socket_class.recv = recv
