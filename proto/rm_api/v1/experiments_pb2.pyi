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
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunStatus]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunStatus, _Mapping]]] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run", "model", "version", "arm", "items", "tokens", "score_mean", "score_std", "last_seen_time", "lease_expire_time")
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
    def __init__(self, run: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., arm: _Optional[str] = ..., items: _Optional[int] = ..., tokens: _Optional[int] = ..., score_mean: _Optional[float] = ..., score_std: _Optional[float] = ..., last_seen_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., lease_expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
