"""What a worker of `pycluster serve` runs: imports the app, tells ASGI from WSGI, and serves it.

ASGI apps are served by uvicorn, WSGI apps by waitress, which are well kept and little more than an HTTP server.
"""

import contextlib
import functools
import importlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, Literal

from . import listener
from .cluster import cluster

Interface = Literal["asgi3", "asgi2", "wsgi"]


def serve(
    app: str,
    *,
    host: str,
    port: int,
    uds: str | None,
    backlog: int,
    loop: str,
    log_level: str,
    factory: bool,
) -> None:
    """Serve an app until this worker disconnects.

    Raises:
      SystemExit: it cannot be served, and why.
    """
    application = load(app, factory)
    interface = interface_of(application)
    if interface is None:
        sys.exit(f"{app} is neither an ASGI nor a WSGI app: {application!r}")
    if interface == "wsgi":
        _serve_wsgi(application, host, port, uds, backlog, log_level)
    else:
        _serve_asgi(application, interface, host, port, uds, backlog, loop, log_level)


def load(name: str, factory: bool) -> Any:
    """Import the app `module:attribute`; with `factory`, call it to get the app.

    Raises:
      SystemExit: there is no such module, or no such attribute. What the module itself raises goes through.
    """
    module_name, _, attributes = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exception:
        # Only when it is this module that is missing, or a package that it is in: not what it imports.
        if exception.name is None or not f"{module_name}.".startswith(f"{exception.name}."):
            raise
        sys.exit(f"there is no module {exception.name!r} for {name} in {os.getcwd()} or where else Python looks")
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            sys.exit(f"there is no {attribute!r} in {found!r} for {name}")
    return found() if factory else found


def interface_of(app: Any) -> Interface | None:
    """How an app wants to be called; None when it is no app.

    ASGI 3 is a coroutine function, or a callable of (scope, receive, send); ASGI 2 a class, or a callable, of (scope);
    WSGI a callable of (environ, start_response).
    """
    if not callable(app):
        return None
    is_object = not (inspect.isroutine(app) or inspect.isclass(app) or isinstance(app, functools.partial))
    called = app.__call__ if is_object else app
    if inspect.iscoroutinefunction(called):
        return "asgi3"
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return "wsgi"  # written in C: no event loop waits for that
    interfaces: tuple[tuple[int, Interface], ...] = ((2, "wsgi"), (3, "asgi3"), (1, "asgi2"))
    for count, interface in interfaces:
        try:
            signature.bind(*[None] * count)
        except TypeError:
            continue
        return interface
    return None


def _serve_asgi(
    app: Any,
    interface: Interface,
    host: str,
    port: int,
    uds: str | None,
    backlog: int,
    loop: str,
    log_level: str,
) -> None:
    import uvicorn

    config = uvicorn.Config(
        app, interface=interface, host=host, port=port, backlog=backlog, loop=loop, log_level=log_level
    )
    sockets = None
    if uds is not None:
        # Not uvicorn's own: it replaces the file and changes its mode, while other workers do the same.
        with _said(uds):
            sockets = [listener.open_unix(os.fsencode(uds))]
    server = uvicorn.Server(config)
    server.run(sockets)
    if not server.started:
        sys.exit(3)  # as uvicorn's own command does; its later versions have done so by now


def _serve_wsgi(app: Any, host: str, port: int, uds: str | None, backlog: int, log_level: str) -> None:
    import waitress

    logging.basicConfig()
    logging.getLogger("waitress").setLevel(log_level.upper())
    with _said(uds or f"{host}:{port}"):
        sock = cluster.listen(uds or (host, port), backlog=backlog)
    waitress.create_server(app, sockets=[sock], backlog=backlog).run()


@contextlib.contextmanager
def _said(address: str) -> Iterator[None]:
    """Say in one line that it cannot be listened on."""
    try:
        yield
    except OSError as exception:
        sys.exit(f"cannot listen on {address}: {exception}")


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
