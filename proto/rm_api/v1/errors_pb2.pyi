from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_MALFORMED_REQUEST: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_ARGUMENT: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_SELECTOR: _ClassVar[ErrorReason]
    ERROR_REASON_EMPTY_ITEM: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_TOKEN_IDS: _ClassVar[ErrorReason]
    ERROR_REASON_ITEM_TOO_LONG: _ClassVar[ErrorReason]
    ERROR_REASON_UNSUPPORTED_CONTENT: _ClassVar[ErrorReason]
    ERROR_REASON_REQUEST_TOO_LARGE: _ClassVar[ErrorReason]
    ERROR_REASON_UNAUTHENTICATED: _ClassVar[ErrorReason]
    ERROR_REASON_PERMISSION_DENIED: _ClassVar[ErrorReason]
    ERROR_REASON_MODEL_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_VERSION_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_LABEL_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_VERSION_NOT_LOADED: _ClassVar[ErrorReason]
    ERROR_REASON_NO_DEFAULT_VERSION: _ClassVar[ErrorReason]
    ERROR_REASON_RUN_NOT_FOUND: _ClassVar[ErrorReason]
    ERROR_REASON_QUEUE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_DRAINING: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE_EXCEEDED: _ClassVar[ErrorReason]
    ERROR_REASON_CANCELLED: _ClassVar[ErrorReason]
    ERROR_REASON_WORKER_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_OUT_OF_MEMORY: _ClassVar[ErrorReason]
    ERROR_REASON_CATALOG_UNAVAILABLE: _ClassVar[ErrorReason]
    ERROR_REASON_RATE_LIMITED: _ClassVar[ErrorReason]
    ERROR_REASON_NON_FINITE_SCORE: _ClassVar[ErrorReason]
    ERROR_REASON_ARTIFACT_UNREADABLE: _ClassVar[ErrorReason]
    ERROR_REASON_DIGEST_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_WEIGHTS_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_GOLDEN_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_CONSTANT_OUTPUT: _ClassVar[ErrorReason]
    ERROR_REASON_UNSUPPORTED_ARTIFACT: _ClassVar[ErrorReason]
    ERROR_REASON_VERSION_IN_USE: _ClassVar[ErrorReason]
    ERROR_REASON_ALREADY_EXISTS: _ClassVar[ErrorReason]
    ERROR_REASON_VERSION_CHANGED: _ClassVar[ErrorReason]
    ERROR_REASON_PROMOTION_REFUSED: _ClassVar[ErrorReason]
    ERROR_REASON_STORAGE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_NOT_CALIBRATED: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_MALFORMED_REQUEST: ErrorReason
ERROR_REASON_INVALID_ARGUMENT: ErrorReason
ERROR_REASON_INVALID_SELECTOR: ErrorReason
ERROR_REASON_EMPTY_ITEM: ErrorReason
ERROR_REASON_INVALID_TOKEN_IDS: ErrorReason
ERROR_REASON_ITEM_TOO_LONG: ErrorReason
ERROR_REASON_UNSUPPORTED_CONTENT: ErrorReason
ERROR_REASON_REQUEST_TOO_LARGE: ErrorReason
ERROR_REASON_UNAUTHENTICATED: ErrorReason
ERROR_REASON_PERMISSION_DENIED: ErrorReason
ERROR_REASON_MODEL_NOT_FOUND: ErrorReason
ERROR_REASON_VERSION_NOT_FOUND: ErrorReason
ERROR_REASON_LABEL_NOT_FOUND: ErrorReason
ERROR_REASON_VERSION_NOT_LOADED: ErrorReason
ERROR_REASON_NO_DEFAULT_VERSION: ErrorReason
ERROR_REASON_RUN_NOT_FOUND: ErrorReason
ERROR_REASON_QUEUE_FULL: ErrorReason
ERROR_REASON_DRAINING: ErrorReason
ERROR_REASON_DEADLINE_EXCEEDED: ErrorReason
ERROR_REASON_CANCELLED: ErrorReason
ERROR_REASON_WORKER_FAILED: ErrorReason
ERROR_REASON_OUT_OF_MEMORY: ErrorReason
ERROR_REASON_CATALOG_UNAVAILABLE: ErrorReason
ERROR_REASON_RATE_LIMITED: ErrorReason
ERROR_REASON_NON_FINITE_SCORE: ErrorReason
ERROR_REASON_ARTIFACT_UNREADABLE: ErrorReason
ERROR_REASON_DIGEST_MISMATCH: ErrorReason
ERROR_REASON_WEIGHTS_MISMATCH: ErrorReason
ERROR_REASON_GOLDEN_MISMATCH: ErrorReason
ERROR_REASON_CONSTANT_OUTPUT: ErrorReason
ERROR_REASON_UNSUPPORTED_ARTIFACT: ErrorReason
ERROR_REASON_VERSION_IN_USE: ErrorReason
ERROR_REASON_ALREADY_EXISTS: ErrorReason
ERROR_REASON_VERSION_CHANGED: ErrorReason
ERROR_REASON_PROMOTION_REFUSED: ErrorReason
ERROR_REASON_STORAGE_FULL: ErrorReason
ERROR_REASON_NOT_CALIBRATED: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason

class Error(_message.Message):
    __slots__ = ("reason", "message", "retry_after_seconds")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    reason: ErrorReason
    message: str
    retry_after_seconds: float
    def __init__(self, reason: _Optional[_Union[ErrorReason, str]] = ..., message: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ...) -> None: ...
