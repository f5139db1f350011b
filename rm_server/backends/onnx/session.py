"""An ONNX file opened in ONNX Runtime on the asked device, with what it takes and gives looked at before it serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Int32Array
from rm_server.backends.json_file import first_line
from rm_server.errors import ArtifactUnreadable, OutOfMemory, UnsupportedArtifact, WeightsMismatch

Int64Array = npt.NDArray[np.int64]

# What an input holds, from ids and type ids (0 where there are none) and which places are tokens: shape (num_items,
# longest), tokens first.
_INPUTS: Mapping[str, Callable[[Int64Array, Int64Array, npt.NDArray[np.bool_]], npt.NDArray[Any]]] = {
    "input_ids": lambda ids, type_ids, present: ids,
    "attention_mask": lambda ids, type_ids, present: present,
    "token_type_ids": lambda ids, type_ids, present: type_ids,
    "position_ids": lambda ids, type_ids, present: np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
}
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_OUTPUT = "logits"
_ALLOCATION_FAILED = ("bad_alloc", "failed to allocate", "out of memory", "bfcarena", "status_alloc_failed")


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session computes: ``cpu`` or ``cuda``, and the number of the GPU."""

    kind: str
    number: int

    @classmethod
    def of(cls, name: str) -> Device:
        """Of ``cpu``, ``cuda`` or ``cuda:1``. Raises UnsupportedArtifact for any other."""
        kind, _, number = name.partition(":")
        if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
            raise UnsupportedArtifact(
                f"The device {name!r} is asked for; ONNX versions are computed on cpu, cuda or cuda:N."
            )
        return cls(kind, int(number or 0))


class OnnxSession:
    """Logits of a batch that is padded already. ``can_pad``: the file takes a mask, so items may share a run."""

    def __init__(self, path: Path, settings: ComputeSettings) -> None:
        """Raises ArtifactUnreadable, UnsupportedArtifact or OutOfMemory."""
        self.device = Device.of(settings.device)
        self._session = _open(path, self.device, settings)
        self._types = {entry.name: _integer_type(path, entry) for entry in self._session.get_inputs()}
        self.can_pad = "attention_mask" in self._types
        self._output = _logits_output(path, self._session.get_outputs())

    def check_label(self, label_index: int) -> None:
        """Raises WeightsMismatch where the head has no such output, as far as the file says how many it has."""
        num_labels = self._output.shape[1]
        if isinstance(num_labels, int) and label_index >= num_labels:
            raise WeightsMismatch(
                f"The manifest's label_index is {label_index}, and the head has {num_labels} outputs."
            )

    def logits(self, ids: Int64Array, type_ids: Int64Array, lengths: Int32Array) -> npt.NDArray[np.float32]:
        """Logits, shape (num_items, num_labels), for ids of shape (num_items, longest) with the padding behind.

        Inputs and result are bound, so that on a GPU each is copied once. Raises OutOfMemory.
        """
        present = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        binding = self._session.io_binding()
        try:
            for name, dtype in self._types.items():
                array = np.ascontiguousarray(_INPUTS[name](ids, type_ids, present), dtype)
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device.kind, self.device.number)
                binding.bind_ortvalue_input(name, value)
            binding.bind_output(self._output.name, self.device.kind, self.device.number)
            self._session.run_with_iobinding(binding)
            (found,) = binding.copy_outputs_to_cpu()
        except Exception as error:  # its exceptions have no common base of their own
            if not is_allocation_failure(error):
                raise
            raise OutOfMemory(
                f"{len(ids)} items padded to {ids.shape[1]} tokens do not fit into the memory of "
                f"{self.device.kind}: {first_line(error)}"
            ) from error
        return np.asarray(found, np.float32)


def is_allocation_failure(error: Exception) -> bool:
    """Whether ONNX Runtime failed for want of memory, which it says in words alone."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _ALLOCATION_FAILED)


def _open(path: Path, device: Device, settings: ComputeSettings) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = settings.deterministic
    # Plans of memory are kept for every shape that ever came, and texts have hundreds.
    options.enable_mem_pattern = False
    # Threads that wait between two runs by spinning would take the cores from the tokenizer and the event loop.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    providers = _providers(device)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions have no common base of their own
        if is_allocation_failure(error):
            raise OutOfMemory(f"{path} does not fit into the memory of {device.kind}: {first_line(error)}") from error
        raise ArtifactUnreadable(f"ONNX Runtime cannot open {path}: {first_line(error)}") from error
    provider = session.get_providers()[0]
    if device.kind == "cuda" and provider != "CUDAExecutionProvider":
        # It would go on, silently and many times slower.
        raise UnsupportedArtifact(
            f"The device {settings.device!r} is asked for, and ONNX Runtime {onnxruntime.__version__} could only start "
            f"{provider}; its log says which CUDA or cuDNN library it misses."
        )
    return session


def _providers(device: Device) -> list[Any]:
    if device.kind == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UnsupportedArtifact(
            f"ONNX Runtime {onnxruntime.__version__} is a build without CUDA; install onnxruntime-gpu, or serve on cpu."
        )
    onnxruntime.preload_dlls()  # finds CUDA and cuDNN where torch's wheels brought them
    # TF32 would round fp32 products to ten bits; memory is taken as asked for, since torch versions share the GPU.
    options = {"device_id": device.number, "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def _integer_type(path: Path, entry: Any) -> Any:
    if entry.name not in _INPUTS:
        raise UnsupportedArtifact(f"{path} takes an input {entry.name!r}; known are {', '.join(_INPUTS)}.")
    if entry.type not in _INTEGERS or len(entry.shape) != 2:
        raise UnsupportedArtifact(
            f"{path}: {entry.name} is {entry.type} of shape {entry.shape}; integers, items × tokens, are expected."
        )
    if any(isinstance(size, int) for size in entry.shape):
        raise UnsupportedArtifact(
            f"{path} was exported for {entry.name} of the fixed shape {entry.shape}; export it with dynamic axes."
        )
    return _INTEGERS[entry.type]


def _logits_output(path: Path, outputs: list[Any]) -> Any:
    named = [entry for entry in outputs if entry.name == _OUTPUT] or outputs
    if len(named) != 1 or len(named[0].shape) != 2 or not named[0].type.startswith("tensor(float"):
        raise UnsupportedArtifact(
            f"{path} gives {', '.join(f'{entry.name} {entry.shape}' for entry in outputs)}; an output {_OUTPUT!r} of "
            "shape items × labels is expected. A plain language model or encoder has none."
        )
    return named[0]
