"""LoRA adapters served over one loaded base: its weights are in memory once, whatever the number of adapters.

Every layer that an adapter adds to knows the additions of all adapters; which one counts for which rows is said for
the forward under way in this thread (`owned_rows`). So adapters come and go while others compute, the base goes with
its last adapter, and one forward may compute items of several: the base's products over all rows at once, each
adapter's small ones over its own.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from rm_server.backends.checkpoint import Config, Model, empty_model, load_model, read_config
from rm_server.backends.footprint import shared_name
from rm_server.backends.interface import ComputeSettings, MixesVersions, SharedMemory
from rm_server.backends.items import Batch, Float64Array
from rm_server.backends.torch.backend import (
    TorchBackend,
    check_label,
    check_max_tokens,
    check_settings,
    checked_forward,
    memory_bytes,
    type_to_read,
)
from rm_server.backends.torch.forward import Forward, PackedForward
from rm_server.backends.torch.joint_linear import JointLinear
from rm_server.backends.torch.linear import PrepackedLinear
from rm_server.backends.torch.lora_adapter import Adapter, Delta, read_adapter
from rm_server.backends.torch.owned_rows import NOBODY, owned_by, owned_rows
from rm_server.backends.torch.self_check import check_batch
from rm_server.backends.torch.widened import is_widened
from rm_server.errors import UnsupportedArtifact, WeightsMismatch
from rm_server.registry.lora import base_folder
from rm_server.registry.manifest import Manifest

logger = logging.getLogger(__name__)

_MAX_LABELS = 1024

_MAX_CHECK_TOKENS = 64
_CHECK_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}
"""Of the largest logit; rows given to the wrong adapter are off by about as much as the adapter changes."""


class LoraLinear(torch.nn.Module):
    """A linear layer with what each adapter adds to its rows. Takes x of shape (…, in_features)."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.deltas: dict[int, Delta] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        rows = owned_rows()
        flat_x, flat_y = rows.flat(x), rows.flat(y)
        for owner, own in rows.parts:
            if (delta := self.deltas.get(owner)) is not None:
                flat_y[own].addmm_(flat_x[own] @ delta.a.T, delta.b.T)
        return y


class OwnModule(torch.nn.Module):
    """A module, the head most often, in whose place each adapter may have its own. Takes one row an item."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.own: dict[int, torch.nn.Module] = {}

    def forward(self, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        rows = owned_rows()
        parts = [self.own.get(owner, self.module)(x[own], *arguments, **named) for owner, own in rows.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class BaseKey:
    """Adapters for which this is equal share a base. ``replaced``: modules that each of them brings along."""

    folder: Path
    num_labels: int
    replaced: frozenset[str]
    settings: ComputeSettings


class SharedBase:
    """A loaded base. It lives as long as a backend refers to it."""

    def __init__(self, key: BaseKey, config: Config, name: str) -> None:
        """Raises what `load_model` and `checked_forward` raise."""
        model = load_model(key.folder, config, key.replaced, type_to_read(key.settings))
        self.model = model
        self.name = name
        self.check = check_batch(model, _MAX_CHECK_TOKENS)
        self._fresh = {name: copy.deepcopy(model.get_submodule(name)) for name in _own_names(model)}
        self._places = {
            f"{parent_name}.{name}" if parent_name else name: (parent, name)
            for parent_name, parent in model.named_modules()
            for name, _ in parent.named_children()
        }
        heads = {name: model.get_submodule(name) for name in self._fresh}
        self.forward: Forward = checked_forward(key.folder, model, 0, key.settings)
        self._places |= {name: self._place_of(module) or self._places[name] for name, module in heads.items()}
        self.memory = SharedMemory(name, memory_bytes(self.forward))
        # A model whose frequencies follow the texts' lengths is changed by each forward.
        self.turn = Lock() if self.forward.changes_its_model else nullcontext()
        self._numbers = count(1)

    def attach(self, folder: Path, adapter: Adapter) -> tuple[int, int]:
        """Takes an adapter in, beside forwards under way; its number, and its own bytes. Raises WeightsMismatch."""
        number = next(self._numbers)
        try:
            deltas = sum(self._add(folder, number, layer, delta) for layer, delta in adapter.deltas.items())
            own = sum(self._replace(folder, number, *part) for part in _by_module(folder, self._fresh, adapter).items())
        except BaseException:
            self.detach(number)
            raise
        return number, deltas + own

    def detach(self, number: int) -> None:
        """Forgets an adapter."""
        for parent, name in self._places.values():
            module = getattr(parent, name)
            if isinstance(module, LoraLinear):
                module.deltas.pop(number, None)
            elif isinstance(module, OwnModule):
                module.own.pop(number, None)

    def _add(self, folder: Path, number: int, layer_name: str, delta: Delta) -> int:
        place = self._places.get(layer_name)
        layer = None if place is None else getattr(*place)
        plain = layer.layer if isinstance(layer, LoraLinear) else layer
        shape = _shape(plain)
        if place is None or plain is None or shape is None:
            raise UnsupportedArtifact(
                f"The adapter in {folder} adds to {layer_name}; {type(self.model).__name__} has no such linear layer."
            )
        if shape != (delta.b.shape[0], delta.a.shape[1]):
            raise WeightsMismatch(
                f"The adapter in {folder} is for a layer {layer_name} with {delta.a.shape[1]} inputs and "
                f"{delta.b.shape[0]} outputs, and its base has {shape[1]} and {shape[0]}: it belongs to another base."
            )
        dtype, device = _type_of(plain), self.forward.device
        fitted = Delta(delta.a.to(device, dtype), delta.b.to(device, dtype))
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(plain)
            setattr(*place, layer)
        layer.deltas[number] = fitted
        return int(fitted.a.nbytes + fitted.b.nbytes)

    def _replace(self, folder: Path, number: int, name: str, weights: Mapping[str, torch.Tensor]) -> int:
        own = copy.deepcopy(self._fresh[name])
        try:
            own.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise WeightsMismatch(
                f"The adapter in {folder} has another {name} than its base can take: {error}"
            ) from None
        place = self._places[name]
        module = getattr(*place)
        if not isinstance(module, OwnModule):
            module = OwnModule(module)
            setattr(*place, module)
        module.own[number] = own.to(self.forward.device, _type_of(module.module)).eval().requires_grad_(False)
        return sum(int(weight.nbytes) for weight in own.state_dict().values())

    def _place_of(self, module: torch.nn.Module) -> tuple[torch.nn.Module, str] | None:
        """Where a module is since the backbone was taken apart from its head; None: something stands in its place."""
        for root in (self.forward.model, self.forward.backbone):
            for parent in root.modules():
                for name, child in parent.named_children():
                    if child is module:
                        return parent, name
        return None


class LoraBackend(TorchBackend):
    """One adapter over a shared base."""

    def __init__(
        self, base: SharedBase, folder: Path, adapter: Adapter, manifest: Manifest, settings: ComputeSettings
    ) -> None:
        super().__init__(base.forward, manifest, settings)
        self._number, self._own_bytes = base.attach(folder, adapter)
        self._base = base
        weakref.finalize(self, base.detach, self._number).atexit = False
        self._mixes = self._mixes_rightly()

    @property
    def memory_bytes(self) -> int:
        """Of the adapter alone, in bytes."""
        return self._own_bytes

    @property
    def shared_memory(self) -> SharedMemory:
        """The base's."""
        return self._base.memory

    def score(self, batch: Batch) -> Float64Array:
        """Raw scores, shape (num_items,). Raises OutOfMemory."""
        with self._base.turn, owned_by(self._number):
            return super().score(batch)

    @property
    def mixes_with(self) -> str:
        """The base's name: adapters over one loaded base can share a batch."""
        return self._base.name if self._mixes else ""

    def score_mixed(self, backends: Sequence[MixesVersions], batch: Batch) -> Float64Array:
        """Raw scores, shape (num_items,), by adapters over this base. Raises OutOfMemory."""
        adapters = cast(Sequence[LoraBackend], backends)
        places = batch.owners
        assert places is not None
        assert all(adapter._base is self._base for adapter in adapters)
        numbers = np.array([adapter._number for adapter in adapters], np.int32)
        labels = np.array([adapter._manifest.label_index for adapter in adapters])
        squashed = np.array([adapter._manifest.transform == "sigmoid" for adapter in adapters])
        with self._base.turn:
            logits = self._logits(replace(batch, owners=numbers[places]), torch.from_numpy(labels[places]))
        scores = torch.where(torch.from_numpy(squashed[places]), torch.sigmoid(logits), logits)
        return cast(Float64Array, scores.numpy())

    def _mixes_rightly(self) -> bool:
        """Whether rows shared out between the adapter and the bare base give what each gives alone: tried, not assumed.

        A layer that sees chosen tokens only, an expert's, say, cannot tell whose they are.
        """
        if not isinstance(self.forward, PackedForward) or self._settings.deterministic:
            return False
        check, owners = self._base.check, np.arange(self._base.check.num_items, dtype=np.int32) % 2 * self._number
        with self._base.turn:
            with owned_by(self._number):
                own = self.forward.logits(check)
            with owned_by(NOBODY):
                bare = self.forward.logits(check)
            expected = torch.where(torch.from_numpy(owners == self._number)[:, None], own, bare)
            try:
                came = self.forward.logits(replace(check, owners=owners))
            except ValueError as error:
                logger.info("Adapters over %s share no batch: %s.", self._base.name, error)
                return False
        tolerance = _CHECK_TOLERANCE[self._settings.precision] * float(expected.abs().max())
        return bool((came - expected).abs().max() <= tolerance)


_bases: weakref.WeakValueDictionary[BaseKey, SharedBase] = weakref.WeakValueDictionary()
_loading = Lock()


def load_lora_backend(folder: Path, manifest: Manifest, settings: ComputeSettings) -> LoraBackend:
    """Loads an adapter, and its base where no other adapter has it. Raises BrokenVersion subclasses or OutOfMemory."""
    check_settings(folder, settings)
    base, adapter = base_folder(folder), read_adapter(folder)
    config = read_adapted_config(base, adapter)
    check_label(manifest, config.num_labels)
    empty = empty_model(config)
    check_max_tokens(empty, manifest)
    replaced = frozenset(_by_module(folder, _own_names(empty), adapter))
    with _loading:
        key = BaseKey(base.resolve(), config.num_labels, replaced, settings)
        if (shared := _bases.get(key)) is None:
            shared = _bases[key] = SharedBase(key, config, shared_name(folder, base, settings))
            logger.info("base %s: %s, %s", base.name, shared.forward.name, settings.precision)
    return LoraBackend(shared, folder, adapter, manifest, settings)


def read_adapted_config(base: Path, adapter: Adapter) -> Config:
    """The base's settings with as many labels as the adapter's head has. Raises WeightsMismatch."""
    config = read_config(base)
    outputs = {weight.shape[0] for weight in adapter.saved.values() if weight.ndim == 2 and len(weight) <= _MAX_LABELS}
    for num_labels in (config.num_labels, *sorted(outputs)):
        config.num_labels = num_labels
        own = empty_model(config).state_dict()
        if all(name in own and own[name].shape == weight.shape for name, weight in adapter.saved.items()):
            return config
    shapes = ", ".join(f"{name} {tuple(weight.shape)}" for name, weight in sorted(adapter.saved.items()))
    raise WeightsMismatch(f"The adapter's own weights ({shapes}) fit no head of the base in {base}.")


def _own_names(model: Model) -> tuple[str, ...]:
    """The modules that an adapter may bring along: whatever is not of the backbone, and the backbone's pooler."""
    prefix = model.base_model_prefix
    names = [name for name, _ in model.named_children() if name != prefix]
    if getattr(model.base_model, "pooler", None) is not None:
        names.append(f"{prefix}.pooler")
    return tuple(names)


def _by_module(folder: Path, names: Collection[str], adapter: Adapter) -> dict[str, dict[str, torch.Tensor]]:
    """The adapter's whole weights by the module that they belong to. Raises UnsupportedArtifact for others."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, weight in adapter.saved.items():
        module = next((name for name in names if key.startswith(f"{name}.")), None)
        if module is None:
            raise UnsupportedArtifact(
                f"The adapter in {folder} replaces {key}, inside of the backbone; only heads can be its own "
                f"({', '.join(names)}). Merge it into its base and register that."
            )
        found.setdefault(module, {})[key.removeprefix(f"{module}.")] = weight
    return found


def _shape(layer: torch.nn.Module | None) -> tuple[int, int] | None:
    """(out_features, in_features); None: no linear layer."""
    if isinstance(layer, PrepackedLinear | JointLinear | torch.nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, Conv1D):
        return layer.nf, layer.nx
    return None


def _type_of(module: torch.nn.Module) -> torch.dtype:
    """What the module computes in."""
    if is_widened(module):
        return torch.float32
    packed = next((part.packed for part in module.modules() if isinstance(part, PrepackedLinear)), None)
    weight = packed if packed is not None else next(module.parameters(), None)
    return torch.float32 if weight is None else weight.dtype
