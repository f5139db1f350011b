"""The backend of sequence-classification checkpoints: transformers' own model, unpadded where that agrees."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np
import torch

from rm_server.backends.checkpoint import Model, load_model, read_config, table_limit
from rm_server.backends.device_memory import is_out_of_memory
from rm_server.backends.interface import ComputeSettings
from rm_server.backends.items import Batch, Float64Array
from rm_server.backends.json_file import first_line
from rm_server.backends.torch.forward import Forward, OneByOneForward, PackedForward, take
from rm_server.backends.torch.joint_linear import join
from rm_server.backends.torch.layout import filled_sizes
from rm_server.backends.torch.linear import PrepackedLinear, prepack, unpack
from rm_server.backends.torch.linear_calls import make_ready, seen_in
from rm_server.backends.torch.self_check import check_batch, choose_forward
from rm_server.backends.torch.widened import is_narrow, widen, widened
from rm_server.errors import OutOfMemory, UnsupportedArtifact, WeightsMismatch
from rm_server.registry.manifest import Manifest, Precision

logger = logging.getLogger(__name__)

_READY_TOKENS = 1536
"""Forwards of up to so many tokens find all prepared: that takes the time of layers, not of models."""
_READY_TOKENS_ALONE = 512
"""The same with the threads of all workers: where more than these wait, other workers take their share."""

_MORE_WORKERS = " With `cuda` each worker has one of its own: there may be fewer than engine.workers."

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend:
    """Scores with a forward that has been checked; used by one thread at a time."""

    def __init__(self, forward: Forward, manifest: Manifest, settings: ComputeSettings) -> None:
        self.forward = forward
        self._manifest = manifest
        self._settings = settings
        self._memory_bytes = memory_bytes(forward)

    @property
    def memory_bytes(self) -> int:
        """Weights and buffers, in bytes."""
        return self._memory_bytes

    @property
    def precision(self) -> Precision:
        """The type that the backbone computes in; the head always computes in fp32."""
        return self._settings.precision

    @property
    def shares_up_to(self) -> int:
        """Neighbours that begin alike have their beginning computed once where neither has more tokens; 0: never."""
        return self.forward.shares_up_to

    def stretch(self, is_alone: bool) -> None:
        """Sets this thread's number of threads, which other threads do not see."""
        use_threads((self._settings.threads_alone if is_alone else 0) or self._settings.threads)

    def score(self, batch: Batch) -> Float64Array:
        """Raw scores, shape (num_items,). Raises OutOfMemory."""
        if not batch.num_items:
            return np.empty(0, np.float64)
        logits = self._logits(batch, torch.full((batch.num_items,), self._manifest.label_index))
        scores = torch.sigmoid(logits) if self._manifest.transform == "sigmoid" else logits
        return cast(Float64Array, scores.numpy())

    def _logits(self, batch: Batch, labels: torch.Tensor) -> torch.Tensor:
        """Each item's logit of its label, shape (num_items,) like ``labels``, in float64. Raises OutOfMemory.

        An item whose logit is not finite is computed again alone: no item fails for its neighbour's sake.
        """
        try:
            logits = self.forward.logits(batch).double().gather(1, labels[:, None])[:, 0]
            for index in torch.nonzero(~logits.isfinite()).flatten().tolist() if batch.num_items > 1 else ():
                logits[index] = self.forward.logits(take(batch, [index]))[0, labels[index]].double()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"{batch.num_items} items with {int(batch.lengths.sum())} tokens do not fit into the memory of "
                f"{self._settings.device}: {first_line(error)}"
            ) from error
        return logits


def load_torch_backend(folder: Path, manifest: Manifest, settings: ComputeSettings) -> TorchBackend:
    """Loads a Hugging Face folder. Raises BrokenVersion subclasses or OutOfMemory."""
    check_settings(folder, settings)
    config = read_config(folder)
    check_label(manifest, config.num_labels)
    model = load_model(folder, config, dtype=type_to_read(settings))
    check_max_tokens(model, manifest)
    forward = checked_forward(folder, model, manifest.max_tokens, settings)
    logger.info("%s: %s, %s, %s", folder.name, type(model).__name__, forward.name, settings.precision)
    return TorchBackend(forward, manifest, settings)


def type_to_read(settings: ComputeSettings) -> torch.dtype | None:
    """As `load_model` wants it."""
    is_kept = settings.precision == "fp32" and settings.keeps_file_type
    return None if is_kept else TYPES[settings.precision]


def check_settings(folder: Path, settings: ComputeSettings) -> None:
    """Raises UnsupportedArtifact for a device that is not there, or a precision that checkpoints are not computed in;
    sets the number of threads and, for a GPU, does without cuDNN's attention.

    Warns of fp32 on a GPU, which is slow there.
    """
    if settings.precision not in TYPES:
        raise UnsupportedArtifact(
            f"{folder} is a checkpoint, which computes in {', '.join(TYPES)}, not in {settings.precision}; "
            "`rm-server export --int8` makes an ONNX version of it."
        )
    is_on_gpu = _device(settings.device).type == "cuda"
    if is_on_gpu:
        # From torch 2.11 on it comes first on Hopper (from 2.15 on in varlen_attn, too), and makes a plan, in tens of
        # ms, for each shape: for each length.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if is_on_gpu and settings.precision == "fp32":
        logger.warning(
            "%s is loaded in fp32 on %s: no kernel takes the items of a batch together in fp32, so attention goes "
            "through them one by one. bf16 and fp16 have such kernels (engine.precision, or --precision of a load).",
            folder.name,
            settings.device,
        )
    use_threads(settings.threads)


def use_threads(num_threads: int) -> None:
    """What this thread computes from now on is computed with so many; 0: as before."""
    if num_threads and torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


def check_label(manifest: Manifest, num_labels: int) -> None:
    """Raises WeightsMismatch where the head has no such label."""
    if not 0 <= manifest.label_index < num_labels:
        raise WeightsMismatch(
            f"The manifest's label_index is {manifest.label_index}, and the head has {num_labels} outputs."
        )


def checked_forward(folder: Path, model: Model, max_tokens: int, settings: ComputeSettings) -> Forward:
    """The fastest way of running ``model`` that agrees with its own forward, in the form in which it serves.

    ``max_tokens`` 0: no limit. Raises OutOfMemory, UnsupportedArtifact.
    """
    device = _device(settings.device)
    try:
        check = check_batch(model, max_tokens or int(1e9))
        forward = _chosen_forward(model.to(device), device, check)
        _prepare(forward, settings, check)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"{folder} does not fit into the memory of {settings.device}: {first_line(error)}") from error
    return forward


def _chosen_forward(model: Model, device: torch.device, check: Batch) -> Forward:
    """Chosen in fp32, whatever type the weights have: rounding would hide what is wrong. Raises UnsupportedArtifact."""
    if not is_narrow(model):
        return choose_forward(model, device, check)
    try:
        with widened(model):
            return choose_forward(model, device, check)
    except UnsupportedArtifact:  # code that asks for the weights' type, and finds another one than it is given
        return choose_forward(model.float(), device, check)


def _prepare(forward: Forward, settings: ComputeSettings, check: Batch) -> None:
    """Brings a checked model into the form in which it serves: precision, prepacked weights, one item a forward."""
    forward.one_at_a_time = settings.deterministic
    # The head stays in fp32, as far as it can be told from the rest: rounding there would make ties between scores that
    # differ. What is run one by one is run as it is.
    whole = forward.model if isinstance(forward, OneByOneForward) else forward.backbone
    if settings.precision != "fp32":
        _cast(whole, TYPES[settings.precision])
    elif is_narrow(whole):
        widen(whole)
        return
    is_tried = settings.prepack and forward.device.type == "cpu" and _prepack(forward, whole, settings, check)
    if settings.precision != "fp32" and not is_tried:
        _try_precision(forward, settings, check)


def _prepack(forward: Forward, whole: torch.nn.Module, settings: ComputeSettings, check: Batch) -> bool:
    """Gives ``whole`` prepacked weights; whether it was seen to compute with them. Else it has its own."""
    swapped = prepack(whole)
    if isinstance(forward, PackedForward) and swapped and not settings.deterministic:
        forward.fills_up = True
    try:
        join(swapped, lambda: forward.logits(check))
        forward.logits(check)
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ) as error:  # whoever has a layer, or asks for its weight, finds none
        logger.warning("%s computes without prepacked weights: %s", type(forward.model).__name__, error)
        unpack(swapped)
        if isinstance(forward, PackedForward):
            forward.fills_up = False
        return False
    if isinstance(forward, PackedForward) and forward.fills_up:
        asked = seen_in(lambda: forward.logits(check), swapped)
        if settings.threads_alone not in (0, settings.threads):
            use_threads(settings.threads_alone)
            make_ready(asked, filled_sizes(_READY_TOKENS_ALONE))
            use_threads(settings.threads)
        make_ready(asked, filled_sizes(_READY_TOKENS))
    return True


def _try_precision(forward: Forward, settings: ComputeSettings, check: Batch) -> None:
    """Raises UnsupportedArtifact where the architecture's own code mixes types, or has no kernel for this one."""
    try:
        forward.logits(check)
    except (RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise UnsupportedArtifact(
            f"{type(forward.model).__name__} cannot be computed in {settings.precision} on {settings.device}: "
            f"{first_line(error)}. Load it in fp32 (engine.precision, or --precision of a load)."
        ) from error


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Changes the weights' type. Buffers keep theirs: rotary frequencies in bf16 would put long texts out of place."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def check_max_tokens(model: Model, manifest: Manifest) -> None:
    """An item with more tokens than the position table has rows could not be computed."""
    limit = table_limit(model.config, model.base_model)
    if limit is not None and manifest.max_tokens > limit:
        raise UnsupportedArtifact(
            f"The manifest's max_tokens is {manifest.max_tokens}, and the model has positions for {limit}."
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnsupportedArtifact(f"{name!r} is no device: {first_line(error)}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedArtifact(
            f"The device {name!r} is asked for, and torch {torch.__version__} sees {torch.cuda.device_count() or 'no'} "
            f"CUDA device(s).{_MORE_WORKERS if name == 'cuda' else ''}"
        )
    if device.type == "cuda":
        try:
            torch.cuda.init()
        except RuntimeError as error:  # The driver was asked for their number, and may be too old for torch's CUDA.
            raise UnsupportedArtifact(
                f"The device {name!r} is asked for, and torch {torch.__version__} cannot use it: {first_line(error)}"
            ) from error
    return device


def memory_bytes(forward: Forward) -> int:
    """Weights and buffers of backbone and head, in bytes."""
    # An encoder's backbone is no longer inside its model once they are split.
    modules = {id(module): module for root in (forward.model, forward.backbone) for module in root.modules()}
    num_bytes = sum(module.num_bytes for module in modules.values() if isinstance(module, PrepackedLinear))
    tensors = {
        id(tensor): tensor
        for module in modules.values()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return num_bytes + sum(int(tensor.nbytes) for tensor in tensors.values())
