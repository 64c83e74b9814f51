"""Flask: `pycluster serve flask_app:app`."""

import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return {"worker": os.getpid()}
