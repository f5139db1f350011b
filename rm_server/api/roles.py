"""Who may do what: every method and every path, with the role it needs and the model it touches. One table."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from operator import attrgetter
from typing import Any, NamedTuple


class Role(IntEnum):
    """What a token may do; each role includes those before it. ``PUBLIC`` is no token's role: it needs none."""

    PUBLIC = 0
    SCORE = 1
    DEPLOY = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """As it is written in the tokens file."""
        return self.name.lower()


FORCE_ROLE = Role.ADMIN


class HttpScoring(NamedTuple):
    """What a request for scores over HTTP asks for, as its rule looks at it."""

    selector: str
    num_items: int


class Rule(NamedTuple):
    """What a call needs.

    ``model``: where its request names the model, as a dotted path of fields; empty: it concerns no single one.
    ``items``: how many completions a request brings. ``is_whole_server``: it concerns all models at once, so that a
    token for some of them may not call it. ``can_force``: its request has a field ``force``, which overrides a check;
    where it is set, the call needs ``FORCE_ROLE``.
    """

    role: Role
    model: str = ""
    items: Callable[[Any], int] | None = None
    is_whole_server: bool = False
    can_force: bool = False

    def role_for(self, request: Any) -> Role:
        """What this request needs."""
        return FORCE_ROLE if self.can_force and request.force else self.role

    def model_of(self, request: Any) -> str | None:
        """The model's name that the request gives, perhaps empty; None where the call concerns no single model."""
        return model_name(attrgetter(self.model)(request)) if self.model else None


def model_name(selector: str) -> str:
    """``helpfulness`` of ``helpfulness@stable``, whether or not such a model exists."""
    return selector.partition("@")[0]


def _completions(request: Any) -> int:
    return sum(len(group.completions) for group in request.groups)


def _one(request: Any) -> int:
    return 1


def _rows(request: Any) -> int:
    """Of the Open Inference Protocol's tensors, whose first dimension counts items.

    Shapes are not checked yet: a negative one must not give back what a token has used, and one of 2**62 must not
    leave a debt for ever. No item has less than a byte.
    """
    sizes: list[int] = [tensor.shape[0] for tensor in request.inputs if tensor.shape]
    num_bytes: int = request.ByteSize()
    return min(max([0, *sizes]), num_bytes)


_READ = Rule(Role.SCORE, "model")
_RUN = Rule(Role.SCORE, "model")
_DEPLOY = Rule(Role.DEPLOY, "model")
_PROBE = Rule(Role.PUBLIC)
_HTTP_SCORE = Rule(Role.SCORE, "selector", attrgetter("num_items"))

TABLE: dict[str, Rule] = {
    "/rm_api.v1.ScoringService/Score": Rule(Role.SCORE, "model", _completions),
    "/rm_api.v1.ScoringService/ScoreStream": Rule(
        Role.SCORE, "request.model", lambda request: _completions(request.request)
    ),
    "/rm_api.v1.ScoringService/Explain": Rule(Role.SCORE, "model", _one),
    "/rm_api.v1.ModelService/RegisterVersion": _DEPLOY,
    "/rm_api.v1.ModelService/ListModels": _READ,
    "/rm_api.v1.ModelService/GetVersion": Rule(Role.SCORE, "selector"),
    "/rm_api.v1.ModelService/LoadVersion": Rule(Role.DEPLOY, "selector"),
    "/rm_api.v1.ModelService/UnloadVersion": Rule(Role.DEPLOY, "selector", can_force=True),
    "/rm_api.v1.ModelService/SetLabel": _DEPLOY,
    "/rm_api.v1.ModelService/RemoveLabel": _DEPLOY,
    "/rm_api.v1.ModelService/RollbackLabel": _DEPLOY,
    "/rm_api.v1.ModelService/PromoteVersion": Rule(Role.DEPLOY, "model", can_force=True),
    "/rm_api.v1.ModelService/DeleteVersion": Rule(Role.ADMIN, "model"),
    "/rm_api.v1.ModelService/WatchModels": _READ,
    "/rm_api.v1.ModelService/ListHistory": _READ,
    "/rm_api.v1.ModelService/GetServerStatus": Rule(Role.SCORE),
    "/rm_api.v1.ExperimentService/RegisterRun": _RUN,
    "/rm_api.v1.ExperimentService/RenewLease": _RUN,
    # As RegisterRun with `move`: run ids are not owned, so whoever may score as a run may end it, too. Among teams, the
    # models of their tokens are what keeps them apart.
    "/rm_api.v1.ExperimentService/EndRun": _RUN,
    "/rm_api.v1.ExperimentService/ReportOutcome": _RUN,
    "/rm_api.v1.ExperimentService/ListRuns": _READ,
    "/rm_api.v1.ExperimentService/SetSplit": Rule(Role.DEPLOY, "split.model"),
    "/rm_api.v1.ExperimentService/ListSplits": _READ,
    "/rm_api.v1.ExperimentService/RemoveSplit": _DEPLOY,
    "/rm_api.v1.ExperimentService/SetPin": Rule(Role.DEPLOY, "pin.model"),
    "/rm_api.v1.ExperimentService/RemovePin": _DEPLOY,
    "/rm_api.v1.ExperimentService/SetShadow": Rule(Role.DEPLOY, "shadow.model"),
    "/rm_api.v1.ExperimentService/ListShadows": _READ,
    "/rm_api.v1.ExperimentService/RemoveShadow": _DEPLOY,
    # It quotes prompts and completions of all runs where shadow.log_texts allows.
    "/rm_api.v1.ExperimentService/GetShadowReport": _DEPLOY,
    "/rm_api.v1.ExperimentService/GetExperimentReport": _READ,
    # Kubernetes and gRPC's own client-side health checks send no token.
    "/grpc.health.v1.Health/Check": _PROBE,
    "/grpc.health.v1.Health/Watch": _PROBE,
    "/grpc.health.v1.Health/List": Rule(Role.SCORE, is_whole_server=True),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(Role.SCORE),
    "/inference.GRPCInferenceService/ServerLive": _PROBE,
    "/inference.GRPCInferenceService/ServerReady": _PROBE,
    "/inference.GRPCInferenceService/ServerMetadata": Rule(Role.SCORE),
    "/inference.GRPCInferenceService/ModelReady": Rule(Role.SCORE, "name"),
    "/inference.GRPCInferenceService/ModelMetadata": Rule(Role.SCORE, "name"),
    "/inference.GRPCInferenceService/ModelInfer": Rule(Role.SCORE, "model_name", _rows),
    "/inference.GRPCInferenceService/ModelStreamInfer": Rule(Role.SCORE, "model_name", _rows),
    "GET /healthz": _PROBE,
    "GET /readyz": _PROBE,
    "GET /metrics": _PROBE,
    "POST /get_reward": _HTTP_SCORE,
    "POST /models/{selector}/get_reward": _HTTP_SCORE,
    "POST /classify": _HTTP_SCORE,
    "POST /models/{selector}/classify": _HTTP_SCORE,
}
"""By gRPC's full method name, or HTTP's method and path."""

METRICS_WITH_TOKEN = Rule(Role.SCORE, is_whole_server=True)
"""In place of the table's rule for ``GET /metrics``, where ``auth.metrics_need_token`` is set."""

UNKNOWN = Rule(Role.ADMIN, is_whole_server=True)
"""What is not in the table."""


def rule_of(method: str) -> Rule:
    """The table's rule; what nobody thought of is for admins alone."""
    return TABLE.get(method, UNKNOWN)
