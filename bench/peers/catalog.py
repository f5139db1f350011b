"""The peers that are measured, at their default settings, and the control: our backend inside LitServe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.peers.peer import Peer
from bench.workload import Item


def _texts(items: Sequence[Item]) -> Any:
    return {"query": [item.text for item in items]}


def _rewards(answer: Any) -> list[float]:
    return list(answer["rewards"])


_QUERY = "a"
"""One query a call is all that /rerank takes; a short one, so that the documents are what is computed."""


def _documents(items: Sequence[Item]) -> Any:
    return {"model": "reward", "query": _QUERY, "documents": [item.text for item in items], "raw_scores": True}


def _relevance(answer: Any) -> list[float]:
    return [result["relevance_score"] for result in sorted(answer["results"], key=lambda result: result["index"])]


def _rows(items: Sequence[Item]) -> Any:
    data = [item.text for item in items]
    return {"inputs": [{"name": "text", "shape": [len(data), 1], "datatype": "BYTES", "data": data}]}


def _outputs(answer: Any) -> list[float]:
    return list(answer["outputs"][0]["data"])


_LITSERVE = ("litserve==0.2.19",)
_LITSERVE_COMMAND = ("-m", "bench.peers.serve_litserve")

INFINITY = Peer(
    "infinity",
    ("infinity-emb[server,torch]==0.0.78",),
    (
        *("-m", "infinity_emb.cli", "v2", "--model-id", "{folder}", "--served-model-name", "reward"),
        *("--host", "127.0.0.1", "--port", "{port}", "--device", "cpu", "--dtype", "{dtype}"),
    ),
    path="/rerank",
    ready_path="/health",
    ask=_documents,
    read=_relevance,
    pairs_with=_QUERY,
    # It wants numpy 1 and transformers 4, which our other packages do not go with.
    shares_all=False,
)
LITSERVE = Peer("litserve", _LITSERVE, _LITSERVE_COMMAND, "/predict", "/health", _texts, _rewards)
MOSEC = Peer("mosec", ("mosec==0.9.8",), ("-m", "bench.peers.serve_mosec"), "/inference", "/", _texts, _rewards)
OPENRLHF = Peer(
    "openrlhf",
    ("fastapi>=0.115", "uvicorn>=0.30"),
    ("-m", "bench.peers.serve_openrlhf"),
    "/get_reward",
    "/health",
    _texts,
    _rewards,
)
PYTRITON = Peer(
    "pytriton",
    ("nvidia-pytriton==0.7.0",),
    ("-m", "bench.peers.serve_pytriton"),
    "/v2/models/reward/infer",
    "/v2/models/reward/ready",
    _rows,
    _outputs,
)
PEERS = (INFINITY, LITSERVE, MOSEC, OPENRLHF, PYTRITON)

CONTROL = Peer(
    "litserve+our_backend", _LITSERVE, _LITSERVE_COMMAND, "/predict", "/health", _texts, _rewards, backend="packed"
)
