"""A reward server as OpenRLHF's `serve_rm` is written: FastAPI, one model in the process, one request at a time."""

from __future__ import annotations

import os
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from bench.peers.scorer import scorer

app = FastAPI()
score = scorer()


@app.get("/health")
async def health() -> dict[str, str]:
    """For those who wait for the start."""
    return {}


@app.post("/get_reward")
async def get_reward(request: Request) -> dict[str, Any]:
    """Scores the texts of one request, in the event loop, as there."""
    texts = (await request.json())["query"]
    return {"rewards": score(texts)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), log_level="warning")
