"""What a program with `tritonclient` does with the server; prints what it got as JSON.

Runs in an environment of its own: tritonclient has its own copy of the protocol's messages.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

MODEL = "helpfulness"


def tensor(name: str, datatype: str, values: Any) -> triton.InferInput:
    array = np.array(values, dtype=object) if datatype == "BYTES" else np.array(values)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text_inputs(prompts: list[str], completions: list[str]) -> list[triton.InferInput]:
    return [tensor("prompt", "BYTES", prompts), tensor("completion", "BYTES", completions)]


def seen(result: triton.InferResult) -> dict[str, Any]:
    response = result.get_response()
    return {
        "model": response.model_name,
        "version": response.model_version,
        "id": response.id,
        "digest": response.parameters["digest"].string_param,
        "scores": result.as_numpy("score").tolist(),
        "truncated": result.as_numpy("truncated").tolist(),
    }


def error_of(call: Any) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("the call did not fail")


def streamed(client: triton.InferenceServerClient, texts: list[str]) -> list[Any]:
    """Infers each text over one stream, an unknown model in between, and gives what came back in order."""
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put(error.message() if error else seen(result)))
    for index, text in enumerate(texts):
        client.async_stream_infer(MODEL, [tensor("completion", "BYTES", [text])], request_id=f"s{index}")
        if index == 0:
            client.async_stream_infer("nonsense", [tensor("completion", "BYTES", [text])])
    got = [answers.get(timeout=60) for _ in range(len(texts) + 1)]
    client.stop_stream()
    return got


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1])
    wanted = json.loads(sys.argv[2])
    texts = text_inputs(wanted["prompts"], wanted["completions"])
    ids = [tensor("input_ids", "INT64", wanted["input_ids"]), tensor("attention_mask", "INT64", wanted["mask"])]
    futures: queue.Queue[Any] = queue.Queue()
    client.async_infer(MODEL, texts, lambda result, error: futures.put((result, error)))
    result, error = futures.get(timeout=60)
    metadata = client.get_model_metadata(MODEL, "2")
    got = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "models_ready": [client.is_model_ready(MODEL), client.is_model_ready(MODEL, "2")],
        "models_not_ready": [client.is_model_ready(MODEL, "9"), client.is_model_ready("nonsense")],
        "server": client.get_server_metadata(as_json=True)["name"],
        "versions": list(metadata.versions),
        "outputs": {output.name: output.datatype for output in metadata.outputs},
        "texts": seen(client.infer(MODEL, texts, request_id="mine", priority=1, timeout=60_000_000)),
        "pinned": seen(client.infer(MODEL, texts, model_version="2")),
        "ids": seen(client.infer(f"{MODEL}@2", ids)),
        "one_output": [
            output.name
            for output in client.infer(MODEL, texts, outputs=[triton.InferRequestedOutput("score")])
            .get_response()
            .outputs
        ],
        "future": error or seen(result),
        "for_a_run": seen(client.infer(MODEL, texts, parameters={"run": "exp-triton"})),
        "unknown_model": error_of(lambda: client.infer("nonsense", texts)),
        "bad_item": error_of(lambda: client.infer(MODEL, text_inputs(["p", "p"], ["fine", ""]))),
        "not_offered": error_of(client.get_model_repository_index),
        "stream": streamed(client, wanted["completions"]),
    }
    client.close()
    print(json.dumps(got))


if __name__ == "__main__":
    main()
