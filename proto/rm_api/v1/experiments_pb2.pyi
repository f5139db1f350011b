from google.protobuf import timestamp_pb2 as _timestamp_pb2
from rm_api.v1 import scoring_pb2 as _scoring_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Lease(_message.Message):
    __slots__ = ("run", "model", "version", "digest", "arm", "calibration", "expire_time")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    version: int
    digest: str
    arm: str
    calibration: _scoring_pb2.Calibration
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., arm: _Optional[str] = ..., calibration: _Optional[_Union[_scoring_pb2.Calibration, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RegisterRunRequest(_message.Message):
    __slots__ = ("run", "model", "lease_seconds", "expected_digest", "move")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    lease_seconds: float
    expected_digest: str
    move: bool
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., lease_seconds: _Optional[float] = ..., expected_digest: _Optional[str] = ..., move: bool = ...) -> None: ...

class RegisterRunResponse(_message.Message):
    __slots__ = ("lease", "resumed")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    resumed: bool
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., resumed: bool = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("run", "model")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class EndRunRequest(_message.Message):
    __slots__ = ("run", "model")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class EndRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("model", "run")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    model: str
    run: str
    def __init__(self, model: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunStatus]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunStatus, _Mapping]]] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run", "model", "version", "arm", "items", "tokens", "score_mean", "score_std", "last_seen_time", "lease_expire_time", "items_per_second", "tokens_per_second", "version_items", "lease_version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORE_MEAN_FIELD_NUMBER: _ClassVar[int]
    SCORE_STD_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_TIME_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ITEMS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    VERSION_ITEMS_FIELD_NUMBER: _ClassVar[int]
    LEASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    version: int
    arm: str
    items: int
    tokens: int
    score_mean: float
    score_std: float
    last_seen_time: _timestamp_pb2.Timestamp
    lease_expire_time: _timestamp_pb2.Timestamp
    items_per_second: float
    tokens_per_second: float
    version_items: int
    lease_version: int
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., arm: _Optional[str] = ..., items: _Optional[int] = ..., tokens: _Optional[int] = ..., score_mean: _Optional[float] = ..., score_std: _Optional[float] = ..., last_seen_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., lease_expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., items_per_second: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., version_items: _Optional[int] = ..., lease_version: _Optional[int] = ...) -> None: ...

class Arm(_message.Message):
    __slots__ = ("name", "version", "weight", "ramp")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RAMP_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    weight: float
    ramp: _containers.RepeatedCompositeFieldContainer[RampPoint]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., weight: _Optional[float] = ..., ramp: _Optional[_Iterable[_Union[RampPoint, _Mapping]]] = ...) -> None: ...

class RampPoint(_message.Message):
    __slots__ = ("time", "weight")
    TIME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    time: _timestamp_pb2.Timestamp
    weight: float
    def __init__(self, time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., weight: _Optional[float] = ...) -> None: ...

class Split(_message.Message):
    __slots__ = ("model", "arms", "salt", "update_time", "shares", "num_runs")
    class SharesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class NumRunsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNS_FIELD_NUMBER: _ClassVar[int]
    model: str
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    salt: str
    update_time: _timestamp_pb2.Timestamp
    shares: _containers.ScalarMap[str, float]
    num_runs: _containers.ScalarMap[str, int]
    def __init__(self, model: _Optional[str] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ..., salt: _Optional[str] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., shares: _Optional[_Mapping[str, float]] = ..., num_runs: _Optional[_Mapping[str, int]] = ...) -> None: ...

class SetSplitRequest(_message.Message):
    __slots__ = ("split", "load", "comment")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    split: Split
    load: bool
    comment: str
    def __init__(self, split: _Optional[_Union[Split, _Mapping]] = ..., load: bool = ..., comment: _Optional[str] = ...) -> None: ...

class SetSplitResponse(_message.Message):
    __slots__ = ("split",)
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    split: Split
    def __init__(self, split: _Optional[_Union[Split, _Mapping]] = ...) -> None: ...

class ListSplitsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListSplitsResponse(_message.Message):
    __slots__ = ("splits", "pins")
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    PINS_FIELD_NUMBER: _ClassVar[int]
    splits: _containers.RepeatedCompositeFieldContainer[Split]
    pins: _containers.RepeatedCompositeFieldContainer[Pin]
    def __init__(self, splits: _Optional[_Iterable[_Union[Split, _Mapping]]] = ..., pins: _Optional[_Iterable[_Union[Pin, _Mapping]]] = ...) -> None: ...

class RemoveSplitRequest(_message.Message):
    __slots__ = ("model", "comment")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    comment: str
    def __init__(self, model: _Optional[str] = ..., comment: _Optional[str] = ...) -> None: ...

class RemoveSplitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Pin(_message.Message):
    __slots__ = ("run", "model", "version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    version: int
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class SetPinRequest(_message.Message):
    __slots__ = ("pin", "comment")
    PIN_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    pin: Pin
    comment: str
    def __init__(self, pin: _Optional[_Union[Pin, _Mapping]] = ..., comment: _Optional[str] = ...) -> None: ...

class SetPinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemovePinRequest(_message.Message):
    __slots__ = ("run", "model", "comment")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    comment: str
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., comment: _Optional[str] = ...) -> None: ...

class RemovePinResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Shadow(_message.Message):
    __slots__ = ("model", "version", "share", "create_time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    share: float
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., share: _Optional[float] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SetShadowRequest(_message.Message):
    __slots__ = ("shadow", "load", "comment")
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    shadow: Shadow
    load: bool
    comment: str
    def __init__(self, shadow: _Optional[_Union[Shadow, _Mapping]] = ..., load: bool = ..., comment: _Optional[str] = ...) -> None: ...

class SetShadowResponse(_message.Message):
    __slots__ = ("shadow",)
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    shadow: Shadow
    def __init__(self, shadow: _Optional[_Union[Shadow, _Mapping]] = ...) -> None: ...

class ListShadowsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListShadowsResponse(_message.Message):
    __slots__ = ("shadows",)
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    shadows: _containers.RepeatedCompositeFieldContainer[Shadow]
    def __init__(self, shadows: _Optional[_Iterable[_Union[Shadow, _Mapping]]] = ...) -> None: ...

class RemoveShadowRequest(_message.Message):
    __slots__ = ("model", "version", "comment")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    comment: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., comment: _Optional[str] = ...) -> None: ...

class RemoveShadowResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetShadowReportRequest(_message.Message):
    __slots__ = ("model", "version", "against_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AGAINST_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    against_version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., against_version: _Optional[int] = ...) -> None: ...

class GetShadowReportResponse(_message.Message):
    __slots__ = ("report_json",)
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    report_json: str
    def __init__(self, report_json: _Optional[str] = ...) -> None: ...

class ReportOutcomeRequest(_message.Message):
    __slots__ = ("run", "model", "metric", "value", "step", "num_samples")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    run: str
    model: str
    metric: str
    value: float
    step: int
    num_samples: int
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., step: _Optional[int] = ..., num_samples: _Optional[int] = ...) -> None: ...

class ReportOutcomeResponse(_message.Message):
    __slots__ = ("version", "arm")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    version: int
    arm: str
    def __init__(self, version: _Optional[int] = ..., arm: _Optional[str] = ...) -> None: ...

class GetExperimentReportRequest(_message.Message):
    __slots__ = ("model", "metric", "baseline_arm")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    BASELINE_ARM_FIELD_NUMBER: _ClassVar[int]
    model: str
    metric: str
    baseline_arm: str
    def __init__(self, model: _Optional[str] = ..., metric: _Optional[str] = ..., baseline_arm: _Optional[str] = ...) -> None: ...

class GetExperimentReportResponse(_message.Message):
    __slots__ = ("report_json",)
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    report_json: str
    def __init__(self, report_json: _Optional[str] = ...) -> None: ...
