from rm_api.v1 import errors_pb2 as _errors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_REFUSE: _ClassVar[Truncation]
    TRUNCATION_KEEP_END: _ClassVar[Truncation]
    TRUNCATION_KEEP_START: _ClassVar[Truncation]

class Transform(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSFORM_UNSPECIFIED: _ClassVar[Transform]
    TRANSFORM_RAW_LOGIT: _ClassVar[Transform]
    TRANSFORM_SIGMOID: _ClassVar[Transform]
    TRANSFORM_RULE: _ClassVar[Transform]
    TRANSFORM_WEIGHTED_SUM: _ClassVar[Transform]
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_REFUSE: Truncation
TRUNCATION_KEEP_END: Truncation
TRUNCATION_KEEP_START: Truncation
TRANSFORM_UNSPECIFIED: Transform
TRANSFORM_RAW_LOGIT: Transform
TRANSFORM_SIGMOID: Transform
TRANSFORM_RULE: Transform
TRANSFORM_WEIGHTED_SUM: Transform

class ScoreRequest(_message.Message):
    __slots__ = ("model", "groups", "run", "request_id", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    run: str
    request_id: str
    options: ScoreOptions
    def __init__(self, model: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., run: _Optional[str] = ..., request_id: _Optional[str] = ..., options: _Optional[_Union[ScoreOptions, _Mapping]] = ...) -> None: ...

class ScoreOptions(_message.Message):
    __slots__ = ("calibrated", "truncation", "bypass_cache", "expected_digest", "priority", "rendered")
    CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    BYPASS_CACHE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RENDERED_FIELD_NUMBER: _ClassVar[int]
    calibrated: bool
    truncation: Truncation
    bypass_cache: bool
    expected_digest: str
    priority: int
    rendered: bool
    def __init__(self, calibrated: bool = ..., truncation: _Optional[_Union[Truncation, str]] = ..., bypass_cache: bool = ..., expected_digest: _Optional[str] = ..., priority: _Optional[int] = ..., rendered: bool = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("prompt", "completions")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    prompt: Content
    completions: _containers.RepeatedCompositeFieldContainer[Content]
    def __init__(self, prompt: _Optional[_Union[Content, _Mapping]] = ..., completions: _Optional[_Iterable[_Union[Content, _Mapping]]] = ...) -> None: ...

class Content(_message.Message):
    __slots__ = ("text", "messages", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    messages: Messages
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., messages: _Optional[_Union[Messages, _Mapping]] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class Messages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("model", "version", "digest", "label", "transform", "calibration", "results", "timings", "arm")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    digest: str
    label: str
    transform: Transform
    calibration: Calibration
    results: _containers.RepeatedCompositeFieldContainer[ItemResult]
    timings: Timings
    arm: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., label: _Optional[str] = ..., transform: _Optional[_Union[Transform, str]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., results: _Optional[_Iterable[_Union[ItemResult, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., arm: _Optional[str] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("digest", "gain", "bias")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    gain: float
    bias: float
    def __init__(self, digest: _Optional[str] = ..., gain: _Optional[float] = ..., bias: _Optional[float] = ...) -> None: ...

class ItemResult(_message.Message):
    __slots__ = ("score", "error", "truncated", "num_tokens")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    score: Score
    error: _errors_pb2.Error
    truncated: bool
    num_tokens: int
    def __init__(self, score: _Optional[_Union[Score, _Mapping]] = ..., error: _Optional[_Union[_errors_pb2.Error, _Mapping]] = ..., truncated: bool = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("value", "components", "attributes", "steps")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    value: float
    components: _containers.RepeatedCompositeFieldContainer[Component]
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    steps: _containers.RepeatedCompositeFieldContainer[StepScore]
    def __init__(self, value: _Optional[float] = ..., components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[StepScore, _Mapping]]] = ...) -> None: ...

class Component(_message.Message):
    __slots__ = ("name", "value", "weight", "version", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    weight: float
    version: int
    digest: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., weight: _Optional[float] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class StepScore(_message.Message):
    __slots__ = ("position", "value")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    position: int
    value: float
    def __init__(self, position: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("tokenize_seconds", "queue_seconds", "compute_seconds", "total_seconds")
    TOKENIZE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tokenize_seconds: float
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    def __init__(self, tokenize_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: ScoreRequest
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[ScoreRequest, _Mapping]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: ScoreResponse
    error: _errors_pb2.Error
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[ScoreResponse, _Mapping]] = ..., error: _Optional[_Union[_errors_pb2.Error, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model", "prompt", "completion", "run", "options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: Content
    completion: Content
    run: str
    options: ScoreOptions
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[_Union[Content, _Mapping]] = ..., completion: _Optional[_Union[Content, _Mapping]] = ..., run: _Optional[str] = ..., options: _Optional[_Union[ScoreOptions, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("model", "version", "digest", "chosen_by", "templated_text", "tokens", "num_tokens_before_truncation", "truncation", "transform", "calibration", "result", "components")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_BY_FIELD_NUMBER: _ClassVar[int]
    TEMPLATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_BEFORE_TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    digest: str
    chosen_by: str
    templated_text: _containers.RepeatedScalarFieldContainer[str]
    tokens: _containers.RepeatedCompositeFieldContainer[ExplainedToken]
    num_tokens_before_truncation: int
    truncation: Truncation
    transform: Transform
    calibration: Calibration
    result: ItemResult
    components: _containers.RepeatedCompositeFieldContainer[ExplainResponse]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., chosen_by: _Optional[str] = ..., templated_text: _Optional[_Iterable[str]] = ..., tokens: _Optional[_Iterable[_Union[ExplainedToken, _Mapping]]] = ..., num_tokens_before_truncation: _Optional[int] = ..., truncation: _Optional[_Union[Truncation, str]] = ..., transform: _Optional[_Union[Transform, str]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., result: _Optional[_Union[ItemResult, _Mapping]] = ..., components: _Optional[_Iterable[_Union[ExplainResponse, _Mapping]]] = ...) -> None: ...

class ExplainedToken(_message.Message):
    __slots__ = ("id", "text", "part")
    class Part(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PART_UNSPECIFIED: _ClassVar[ExplainedToken.Part]
        PART_PROMPT: _ClassVar[ExplainedToken.Part]
        PART_COMPLETION: _ClassVar[ExplainedToken.Part]
        PART_ADDED: _ClassVar[ExplainedToken.Part]
    PART_UNSPECIFIED: ExplainedToken.Part
    PART_PROMPT: ExplainedToken.Part
    PART_COMPLETION: ExplainedToken.Part
    PART_ADDED: ExplainedToken.Part
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    part: ExplainedToken.Part
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., part: _Optional[_Union[ExplainedToken.Part, str]] = ...) -> None: ...
