"""The Open Inference Protocol's requests and answers, to and from the server's own types.

Inputs: ``completion`` (BYTES, [N] or [N, 1]) and beside it ``prompt`` (the same); or ``input_ids`` (INT64 or INT32,
[N, L]) and beside it ``attention_mask`` (INT64, INT32 or BOOL, [N, L]), which alone says what is padding. Ids are used
as they are: no template, no special tokens.
Outputs: ``score`` (FP64, [N]: the same number as over the other protocols), ``truncated`` (BOOL, [N]), ``num_tokens``
(INT32, [N]).
Parameters: ``run``, ``calibrated``, ``bypass_cache``, ``truncation`` and ``expected_digest`` as in
rm_api.v1.ScoreRequest; ``priority`` (1 goes first, 21 last, 0: 11) and ``timeout`` (microseconds) as Triton has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rm_api.oip import inference_pb2

from rm_server.api.convert import MAX_PRIORITY
from rm_server.api.oip_tensors import BYTES, Tensor, is_raw, read_tensors, write_tensors
from rm_server.api.whole_answer import all_values
from rm_server.backends.items import Content
from rm_server.errors import InvalidRequest, MalformedRequest
from rm_server.registry.manifest import TRUNCATION_RULES, TruncationRule
from rm_server.registry.records import VersionRecord
from rm_server.scoring.scorer import ScoreAnswer, ScoreCall
from rm_server.scoring.selector import parse

NO_PROMPT = ""

IDS_TYPES = ("INT64", "INT32")
INPUTS: Mapping[str, Sequence[str]] = {
    "prompt": (BYTES,),
    "completion": (BYTES,),
    "input_ids": IDS_TYPES,
    "attention_mask": (*IDS_TYPES, "BOOL"),
}
OUTPUTS: Mapping[str, str] = {"score": "FP64", "truncated": "BOOL", "num_tokens": "INT32"}

FINAL_RESPONSE = "triton_enable_empty_final_response"
"""What Triton's client adds to the requests of a stream to be told which answer is a request's last."""

PARAMETERS: Mapping[str, type] = {
    "run": str,
    "calibrated": bool,
    "bypass_cache": bool,
    "truncation": str,
    "expected_digest": str,
    "priority": int,
    "timeout": int,
    FINAL_RESPONSE: bool,
}
_MIDDLE_PRIORITY = MAX_PRIORITY + 1


def selector_text(name: str, version: str) -> str:
    """The selector that a name and a version mean. Raises InvalidRequest where the name has another version, too."""
    selector = parse(name)
    if not version:
        return name
    if selector.is_bare:
        return f"{name}@{version}"
    if str(parse(f"{selector.model}@{version}")) != str(selector):
        raise InvalidRequest(f"The model's name is {name!r} and its version {version!r}; give one of them.")
    return name


def num_items(request: inference_pb2.ModelInferRequest) -> int:
    """What the shapes say, which nobody has checked yet."""
    return max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=0)


def score_call(request: inference_pb2.ModelInferRequest, request_id: str) -> ScoreCall:
    """A request as the scorer takes it. Raises InvalidRequest, also for outputs that nobody could give."""
    _wanted(request)
    options = _parameters(request)
    return ScoreCall(
        selector=selector_text(request.model_name, request.model_version),
        groups=[(prompt, (completion,)) for prompt, completion in _items(request)],
        run=options.get("run", ""),
        request_id=request_id,
        calibrated=options.get("calibrated", False),
        truncation=_truncation(options.get("truncation", "")),
        bypass_cache=options.get("bypass_cache", False),
        expected_digest=options.get("expected_digest", ""),
        priority=_priority(options.get("priority", 0)),
    )


def timeout_s(request: inference_pb2.ModelInferRequest) -> float | None:
    """How long the caller waits, by its parameter ``timeout``; None: it does not say."""
    timeout_us: int = _parameters(request).get("timeout", 0)
    if timeout_us < 0:
        raise InvalidRequest(f"Parameter timeout is {timeout_us}; microseconds, or 0 for none, were expected.")
    return timeout_us / 1e6 or None


def infer_response(request: inference_pb2.ModelInferRequest, answer: ScoreAnswer) -> inference_pb2.ModelInferResponse:
    """The outputs that were asked for. Raises the error of an item that failed: no number stands in its place."""
    name = "completion" if any(message.name == "completion" for message in request.inputs) else "input_ids"
    elements: Mapping[str, Sequence[float]] = {
        "score": all_values(answer, name),
        "truncated": [item.truncated for item in answer.items],
        "num_tokens": [item.num_tokens for item in answer.items],
    }
    response = inference_pb2.ModelInferResponse(
        model_name=answer.model, model_version=str(answer.version), id=request.id
    )
    for key, value in _source(answer).items():
        response.parameters[key].string_param = value
    shape = (len(answer.items),)
    tensors = [Tensor(name, OUTPUTS[name], shape, np.array(elements[name])) for name in _wanted(request)]
    return write_tensors(response, tensors, as_raw=is_raw(request))


def stream_response(
    request: inference_pb2.ModelInferRequest, response: inference_pb2.ModelInferResponse
) -> inference_pb2.ModelStreamInferResponse:
    """An answer on a stream: the only one to its request, and so its last."""
    if _parameters(request).get(FINAL_RESPONSE):
        response.parameters["triton_final_response"].bool_param = True
    return inference_pb2.ModelStreamInferResponse(infer_response=response)


def metadata_response(record: VersionRecord, loaded: Sequence[int]) -> inference_pb2.ModelMetadataResponse:
    """What the version takes and gives. ``loaded``: the numbers of the model's versions that are loaded here."""
    tensor = inference_pb2.ModelMetadataResponse.TensorMetadata
    return inference_pb2.ModelMetadataResponse(
        name=record.model,
        versions=[str(version) for version in loaded],
        platform=f"rm_{record.kind}",
        inputs=[
            tensor(name=name, datatype=types[0], shape=[-1] if types[0] == BYTES else [-1, -1])
            for name, types in INPUTS.items()
        ],
        outputs=[tensor(name=name, datatype=datatype, shape=[-1]) for name, datatype in OUTPUTS.items()],
        properties={
            "version": str(record.version),
            "digest": record.digest,
            "kind": record.kind,
            "max_tokens": str(record.max_tokens),
        },
    )


def _wanted(request: inference_pb2.ModelInferRequest) -> list[str]:
    for output in request.outputs:
        if output.name not in OUTPUTS:
            raise InvalidRequest(f"Output {output.name!r} is not known; known are {', '.join(OUTPUTS)}.")
        if output.parameters:
            raise InvalidRequest(
                f"Output {output.name} has parameters ({', '.join(sorted(output.parameters))}); an output takes none. "
                "Neither classification nor shared memory is offered."
            )
    return [output.name for output in request.outputs] or list(OUTPUTS)


def _parameters(request: inference_pb2.ModelInferRequest) -> dict[str, Any]:
    values = {}
    for name, parameter in request.parameters.items():
        expected = PARAMETERS.get(name)
        if expected is None:
            raise InvalidRequest(f"Parameter {name!r} is not known; known are {', '.join(PARAMETERS)}.")
        choice = parameter.WhichOneof("parameter_choice")
        value = None if choice is None else getattr(parameter, choice)
        if type(value) is not expected:
            raise InvalidRequest(f"Parameter {name} is {value!r}; a {expected.__name__} was expected.")
        values[name] = value
    return values


def _truncation(text: str) -> TruncationRule | None:
    for rule in TRUNCATION_RULES:
        if text == rule:
            return rule
    if text:
        raise InvalidRequest(f"Parameter truncation is {text!r}; known are {', '.join(TRUNCATION_RULES)}.")
    return None


def _priority(triton: int) -> int:
    """Ours, of which the larger goes first, from Triton's, of which the smaller does."""
    if not 0 <= triton <= _MIDDLE_PRIORITY + MAX_PRIORITY:
        raise InvalidRequest(
            f"Parameter priority is {triton}; 1 (goes first) to {_MIDDLE_PRIORITY + MAX_PRIORITY}, or 0, were expected."
        )
    return _MIDDLE_PRIORITY - triton if triton else 0


def _source(answer: ScoreAnswer) -> dict[str, str]:
    """What every answer says of itself."""
    source = {
        "digest": answer.digest,
        "transform": answer.transform,
        "label": answer.label or "",
        "arm": answer.arm or "",
        "calibration": answer.calibration.digest if answer.calibration else "",
    }
    return {key: value for key, value in source.items() if value}


def _items(request: inference_pb2.ModelInferRequest) -> list[tuple[Content, Content]]:
    tensors = read_tensors(request, INPUTS)
    match sorted(tensors):
        case ["completion"]:
            return [(NO_PROMPT, text) for text in _texts(tensors["completion"])]
        case ["completion", "prompt"]:
            prompts, completions = _texts(tensors["prompt"]), _texts(tensors["completion"])
            if len(prompts) != len(completions):
                raise InvalidRequest(
                    f"There are {len(prompts)} prompts and {len(completions)} completions; one prompt for each "
                    "completion was expected."
                )
            return list(zip(prompts, completions, strict=True))
        case ["input_ids"] | ["attention_mask", "input_ids"]:
            return [(NO_PROMPT, ids) for ids in _ids(tensors["input_ids"], tensors.get("attention_mask"))]
        case names:
            raise InvalidRequest(
                f"The inputs are {', '.join(names) or 'none'}; completion with or without prompt, or input_ids with or "
                "without attention_mask, was expected."
            )


def _texts(tensor: Tensor) -> list[str]:
    if len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
        raise InvalidRequest(f"{tensor.name} has shape {list(tensor.shape)}; [N] or [N, 1] was expected.")
    texts = []
    for index, raw in enumerate(tensor.elements):
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise MalformedRequest(f"{tensor.name}[{index}] is no text in UTF-8: {error}.") from None
    return texts


def _ids(tensor: Tensor, mask: Tensor | None) -> list[tuple[int, ...]]:
    """The ids of each row that are not padding. Raises InvalidRequest where padding stands between ids."""
    if len(tensor.shape) != 2 or (tensor.shape[0] and not tensor.shape[1]):
        raise InvalidRequest(f"input_ids has shape {list(tensor.shape)}; [N, L] with L at least 1 was expected.")
    ids = np.asarray(tensor.elements)
    if mask is None:
        return [tuple(row) for row in ids.tolist()]
    if mask.shape != tensor.shape:
        raise InvalidRequest(f"attention_mask has shape {list(mask.shape)}, and input_ids {list(tensor.shape)}.")
    counts = np.asarray(mask.elements)
    if not np.isin(counts, (0, 1)).all():
        raise InvalidRequest("attention_mask has elements other than 0 (padding) and 1.")
    broken = np.flatnonzero(np.count_nonzero(np.diff(counts.astype(np.int8), axis=1, prepend=0) == 1, axis=1) > 1)
    if broken.size:
        raise InvalidRequest(
            f"attention_mask[{broken[0]}] has padding between ids; it was expected before them, after them, or both."
        )
    return [tuple(row[keep].tolist()) for row, keep in zip(ids, counts != 0, strict=True)]
