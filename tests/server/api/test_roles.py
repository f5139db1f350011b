"""The table of roles has every method of every service and every path, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from rm_api.oip import inference_pb2
from rm_api.v1 import experiments_pb2, models_pb2, scoring_pb2

from rm_server.api.http import HttpService
from rm_server.api.roles import TABLE, UNKNOWN, Role, model_name, rule_of

FILES = (scoring_pb2, models_pb2, experiments_pb2, inference_pb2, health_pb2, reflection_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
NEWER_METHODS = {"/grpc.health.v1.Health/List"}
"""Not in all releases of gRPC's health checking that we work with."""

MODEL_FIELDS = {"model", "selector", "model_name"}
NO_MODEL_IN_NAME = {"/inference.GRPCInferenceService/ModelReady", "/inference.GRPCInferenceService/ModelMetadata"}
"""Here the field is called ``name``."""


def http_paths() -> set[str]:
    nothing: Any = None
    service = HttpService(nothing, nothing, nothing, nothing, nothing, default_model="", max_body_bytes=1)
    return {
        f"{route.method} {route.resource.canonical}"
        for route in service.application().router.routes()
        if route.method != "HEAD" and route.resource is not None
    }


def fields(message: Descriptor, prefix: str = "", depth: int = 2) -> Iterator[str]:
    """Dotted paths of the fields that occur once."""
    described = DescriptorProto()  # what a field's descriptor itself says of this depends on protobuf's version
    message.CopyToProto(described)
    for field, proto in zip(message.fields, described.field, strict=True):
        if proto.label == FieldDescriptorProto.LABEL_REPEATED:
            continue
        yield prefix + field.name
        if field.message_type is not None and depth:
            yield from fields(field.message_type, f"{prefix}{field.name}.", depth - 1)


def test_every_method_and_path_is_in_the_table_and_nothing_else() -> None:
    assert set(TABLE) == METHODS.keys() | http_paths() | NEWER_METHODS


def test_what_is_not_in_the_table_is_for_admins_who_may_touch_all_models() -> None:
    rule = rule_of("/rm_api.v1.ModelService/FormatDisk")
    assert rule is UNKNOWN
    assert (rule.role, rule.is_whole_server) == (Role.ADMIN, True)


@pytest.mark.parametrize("name", METHODS)
def test_a_request_that_names_a_model_is_held_against_the_token_s_models(name: str) -> None:
    method, rule = METHODS[name], TABLE[name]
    naming = [path for path in fields(method.input_type) if path.rpartition(".")[2] in MODEL_FIELDS]
    if name in NO_MODEL_IN_NAME:
        naming = ["name"]
    if rule.role is Role.PUBLIC or "reflection" in name:
        return
    assert rule.model in (naming or [""]), f"{name}: one of {naming} says which model it touches"
    request = GetMessageClass(method.input_type)()
    assert rule.model_of(request) == ("" if naming else None)
    assert rule.items is None or rule.items(request) in (0, 1)


@pytest.mark.parametrize("name", METHODS)
def test_force_is_found_where_the_edge_looks_for_it(name: str) -> None:
    paths = [path for path in fields(METHODS[name].input_type) if path.rpartition(".")[2] == "force"]
    assert paths == (["force"] if TABLE[name].can_force else [])


def test_scoring_counts_its_items() -> None:
    request = scoring_pb2.ScoreRequest(model="m@stable")
    for num_completions in (3, 0, 2):
        group = request.groups.add()
        for _ in range(num_completions):
            group.completions.add()
    score = TABLE["/rm_api.v1.ScoringService/Score"]
    stream = TABLE["/rm_api.v1.ScoringService/ScoreStream"]
    assert score.items is not None
    assert stream.items is not None
    assert (score.items(request), score.model_of(request)) == (5, "m")
    streamed = scoring_pb2.ScoreStreamRequest(id="1", request=request)
    assert (stream.items(streamed), stream.model_of(streamed)) == (5, "m")
    infer = TABLE["/inference.GRPCInferenceService/ModelInfer"]
    assert infer.items is not None
    inferred = inference_pb2.ModelInferRequest(model_name="m@3")
    inferred.inputs.add(name="completion", shape=[7, 1])
    assert (infer.items(inferred), infer.model_of(inferred)) == (7, "m")
    inferred.inputs[0].shape[0] = 2**62  # which a token with limits would owe for ever
    assert infer.items(inferred) == inferred.ByteSize()


def test_a_selector_s_model() -> None:
    assert [model_name(text) for text in ("m", "a/b@3", "m@stable", "@x", "")] == ["m", "a/b", "m", "", ""]
