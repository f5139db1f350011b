"""Linear layers for the CPU: oneDNN with weights reordered once, swapped in where it works and agrees with torch.

On the machines measured this more than doubles the rate of fp32 products against `F.linear`, which goes through MKL.
The operators are torch's own (Inductor freezes models with them) but private, so each layer is probed at load.
"""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

import torch
from torch.nn.functional import gelu
from transformers.pytorch_utils import Conv1D

from rm_server.backends.device_memory import let_go_of

logger = logging.getLogger(__name__)

# The number of rows that the weight's order is chosen for; without a number the products are many times slower.
_BATCH_HINT = 4096
_PROBE_ROWS = 7
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


class PrepackedLinear(torch.nn.Module):
    """``x @ weight.T + bias`` with a weight in oneDNN's order, which can be neither pickled nor moved.

    Takes x of shape (…, in_features) in the weight's type. What is made of the product at once costs no pass of its
    own over it, and it is rounded once: `gelu`, `plus`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.num_bytes = weight.numel() * weight.element_size()
        self.packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _BATCH_HINT)
        self.bias = None if bias is None else bias.contiguous()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The overload itself: to have torch look for it takes microseconds, in every layer.
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "none", [], "")
        return y

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU of the product, by its erf."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, "gelu", [], "none")
        return y

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product and ``other``, which has its shape, added up."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, "add")
        return y

    def dense(self) -> torch.Tensor:
        """The weight as it was given, bit for bit, shape (out_features, in_features)."""
        return self.packed.to_dense()


Swapped: TypeAlias = list[tuple[torch.nn.Module, str, Any]]
"""Parent, name and original of each layer that was swapped. The originals have no weight meanwhile."""


def prepack(module: torch.nn.Module) -> Swapped:
    """Swaps the linear layers in ``module`` for prepacked ones.

    A layer stays as it is when its type is neither fp32 nor bf16, or its probe fails.
    """
    swapped: Swapped = []
    packed: dict[Any, PrepackedLinear] = {}  # a layer may stand in several places
    if torch.backends.mkldnn.is_available():
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                replacement = packed.get(child) or _prepacked(child)
                if replacement is not None:
                    setattr(parent, name, replacement)
                    packed[child] = replacement
                    swapped.append((parent, name, child))
                    _forget_weight(child)
                    let_go_of(replacement.num_bytes)
    return swapped


def _forget_weight(layer: Any) -> None:
    """Of all layers together, the weights would take as much memory again as what they were packed into."""
    layer.weight = None


def unpack(swapped: Swapped) -> None:
    """Puts the original layers back, with their weights."""
    for parent, name, original in swapped:
        weight = getattr(parent, name).dense()
        if type(original) is Conv1D:
            weight = weight.t().contiguous()
        original.weight = torch.nn.Parameter(weight, requires_grad=False)
        setattr(parent, name, original)


def swapped_layers(swapped: Swapped) -> list[PrepackedLinear]:
    """The prepacked layers that are in place now, or inside of what is; each once."""
    inside = {id(module): module for parent, name, _ in swapped for module in getattr(parent, name).modules()}
    return [module for module in inside.values() if isinstance(module, PrepackedLinear)]


@torch.no_grad()
def _prepacked(layer: Any) -> PrepackedLinear | None:
    # Exactly these types: a subclass may compute something else.
    if type(layer) is torch.nn.Linear:
        weight: torch.Tensor = layer.weight
    elif type(layer) is Conv1D:  # GPT-2's linear layer, whose weight lies the other way round
        weight = layer.weight.t()
    else:
        return None
    if weight.dtype not in _TOLERANCE:
        return None
    try:
        packed = PrepackedLinear(weight.detach(), None if layer.bias is None else layer.bias.detach())
        x = probe(packed.in_features, weight.dtype)
        product: torch.Tensor = layer(x)
        agrees = (
            is_same(packed(x), product)
            and is_same(packed.gelu(x), gelu(product))
            and is_same(packed.plus(x, product), 2 * product)
        )
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        logger.info("A linear layer stays unpacked: %s", error)
        return None
    if not agrees:
        logger.info("A linear layer stays unpacked: oneDNN's product differs")
        return None
    return packed


def probe(in_features: int, dtype: torch.dtype) -> torch.Tensor:
    """Some rows to try a layer with, shape (1, rows, in_features)."""
    return torch.randn(1, _PROBE_ROWS, in_features, generator=torch.Generator().manual_seed(0)).to(dtype)


def is_same(came: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two ways of computing a layer agree, as far as the type's rounding lets them."""
    tolerance = _TOLERANCE[wanted.dtype] * max(1.0, float(wanted.abs().max()))
    return came.shape == wanted.shape and bool((came - wanted).abs().max() <= tolerance)
