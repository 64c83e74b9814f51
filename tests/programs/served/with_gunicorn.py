"""gunicorn, whose arbiter starts processes of its own. Arguments: port."""

import sys
from typing import Any

from gunicorn.app.base import BaseApplication

from programs.served.apps import HOST, wsgi


class Application(BaseApplication):  # type: ignore[misc]
    def load_config(self) -> None:
        self.cfg.set("bind", f"{HOST}:{sys.argv[1]}")
        self.cfg.set("loglevel", "error")

    def load(self) -> Any:
        return wsgi


Application().run()
