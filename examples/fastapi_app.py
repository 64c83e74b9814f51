"""FastAPI: `pycluster serve fastapi_app:app`."""

import os

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def hello() -> dict[str, int]:
    return {"worker": os.getpid()}
