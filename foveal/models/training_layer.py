"""One decoder layer under training, with few launches and little kept.

    norm -> q, k, v -> head norms -> rotate -> attend -> o -> norm (Gemma)
    -> add, norm -> gate, up, down -> norm (Gemma) -> add

Products run through ``foveal.models.fused_lora``, what stands between them through
``foveal.kernels.train_fused``; both read PEFT's and the stock modules' own parameters. A layer of
another form takes ``stock_layer``, which calls the modules and is the specification, and so
does a CPU unless less is to be kept there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from foveal.kernels.arithmetic import product_dtype
from foveal.kernels.train_fused import add_rms_norm, rms_norm, rotary
from foveal.models.checkpointing import checkpoint_function
from foveal.models.decoder import Decoder, Layer, attention_inputs, attention_outputs
from foveal.models.fused_lora import gated_mlp, project
from foveal.models.state import Checkpointing

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``attend(q_NHC, k_NKC, v_NKC) -> out_NHC``."""
Angles = tuple[Tensor, Tensor]
"""Cosine and sine of each token's position, ``[N, C]``."""
Results = tuple[Tensor, Tensor, Tensor]
"""The stream behind a layer ``[N, D]``, its rotated keys and its values ``[N, K, C]``."""
Again = Literal["nothing", "cheap"]
"""What the backward pass computes again: see :func:`fused_layer`."""

FUSED_ON = {"cuda"}
"""Devices on which layers are fused under every policy. On a CPU, where models are small, it is
calls that take the time, and those of a custom backward pass cost more than autograd's own."""

NORMS = {
    "Qwen2_5_VLRMSNorm": ("variance_epsilon", False),
    # What versions of transformers before it had a norm of its own call that of Qwen2.5-VL.
    "Qwen2RMSNorm": ("variance_epsilon", False),
    "Qwen3VLTextRMSNorm": ("variance_epsilon", False),
    "Gemma3RMSNorm": ("eps", True),
}
"""By class: where its epsilon is, and whether one is added to the weight."""


def training_layer(
    decoder: Decoder, layer: Layer, x_ND: Tensor, angles: Angles, attend: Attend,
    policy: Checkpointing,
) -> Results:  # fmt: skip
    """A layer of a training pass; of its activations what ``policy`` says is kept.

    Args:
        layer: one of the decoder's.
        x_ND: residual stream.
        angles: of the layer's kind.
        attend: attention of the pass.
        policy: as of ``set_checkpointing``; False where nothing is differentiated. "selective"
            keeps of a layer that cannot be fused its input alone, as True does.
    """
    wanted = policy == "selective" or x_ND.device.type in FUSED_ON
    fused = wanted and why_not_fused(layer) is None
    if fused and policy == "selective":
        return fused_layer(decoder, layer, x_ND, angles, attend, again="cheap")
    calls = 0

    def compute(x_ND: Tensor) -> Results:
        nonlocal calls
        calls += 1
        if not fused:
            return stock_layer(decoder, layer, x_ND, angles, attend)
        # A checkpoint's further calls are for what is kept; their results are dropped.
        return fused_layer(decoder, layer, x_ND, angles, attend, result=calls == 1)

    # The stream is the one input that is kept (or sent to the host): all else is shared.
    # Models whose layers draw random numbers (dropout) are refused by the stack.
    return checkpoint_function(policy, draws=False)(compute, x_ND) if policy else compute(x_ND)


def layer_again(
    decoder: Decoder, layer: Layer, x_ND: Tensor, angles: Angles, attend: Attend
) -> Tensor:
    """The graph of a layer whose result is known; the stream that is returned may hold anything."""
    if x_ND.device.type in FUSED_ON and why_not_fused(layer) is None:
        return fused_layer(decoder, layer, x_ND, angles, attend, result=False)[0]
    return stock_layer(decoder, layer, x_ND, angles, attend)[0]


def why_not_fused(layer: Layer) -> str | None:
    """The reason why a layer has to take :func:`stock_layer`; None if it need not.

    Linear layers of any form are no reason: ``project`` and ``gated_mlp`` call those that they do
    not know.
    """
    norms = (layer.before_attention, layer.after_attention, layer.before_mlp, layer.after_mlp,
             layer.q_norm, layer.k_norm)  # fmt: skip
    for norm in norms:
        if norm is None:
            continue
        if type(norm).__name__ not in NORMS:
            return f"a {type(norm).__name__} has to be called as it is"
        if _hooked(norm):
            return f"a {type(norm).__name__} has hooks"
    return None


def _hooked(norm: nn.Module) -> bool:
    hooks = (norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks,
             norm._backward_pre_hooks)  # fmt: skip
    return "forward" in vars(norm) or any(hooks)


def stock_layer(
    decoder: Decoder, layer: Layer, x_ND: Tensor, angles: Angles, attend: Attend
) -> Results:
    """A layer by the stock modules."""
    q, k, v = attention_inputs(decoder, layer, x_ND, angles)
    # Norms and rotation may have widened them.
    q, k = q.to(v.dtype), k.to(v.dtype)
    return attention_outputs(decoder, layer, x_ND, attend(q, k, v)), k, v


def fused_layer(
    decoder: Decoder,
    layer: Layer,
    x_ND: Tensor,
    angles: Angles,
    attend: Attend,
    *,
    again: Again = "nothing",
    result: bool = True,
) -> Results:
    """:func:`stock_layer` with less kept and fewer launches.

    Args:
        again: "nothing" keeps x, q, k, v, the attention's output, gate and up, and the normed
            inputs of products. "cheap" keeps neither these inputs, which are normed again, nor
            gate and up, which cost two of the seven products.
        result: False where a checkpoint calls for what is kept: the stream that is returned may
            then hold anything.
    """
    cheap, dtype = again == "cheap", product_dtype(x_ND)
    x_ND, h_ND = _add_norm(layer.before_attention, x_ND, None, dtype)
    with _renormed(layer.before_attention, x_ND, h_ND, keep=not cheap):
        q, k, v = project(h_ND, (layer.q, layer.k, layer.v))
    del h_ND
    q, k, v = (x.view(len(x_ND), -1, decoder.width) for x in (q, k, v))
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = _norm(layer.q_norm, q), _norm(layer.k_norm, k)
    # Their own norms may have widened them.
    q, k = rotary(q.to(v.dtype), k.to(v.dtype), *angles)
    (y_ND,) = project(attend(q, k, v).flatten(1), (layer.o,))
    if layer.after_attention is not None:
        y_ND = _norm(layer.after_attention, y_ND)
    x_ND, h_ND = _add_norm(layer.before_mlp, x_ND, y_ND, dtype)
    act = "gelu_pytorch_tanh" if decoder.family.gelu else "silu"
    # A norm behind the block keeps its input, so that has to be right in every call.
    result = result or layer.after_mlp is not None
    with _renormed(layer.before_mlp, x_ND, h_ND, keep=not cheap):
        y_ND = gated_mlp(
            h_ND, layer.gate, layer.up, layer.down, act, recompute=cheap, result=result
        )
    if layer.after_mlp is not None:
        y_ND = _norm(layer.after_mlp, y_ND)
    return x_ND + y_ND, k, v


def _norm(norm: Any, x_ND: Tensor) -> Tensor:
    eps, offset = NORMS[type(norm).__name__]
    return rms_norm(x_ND, norm.weight, getattr(norm, eps), offset=offset)


def _add_norm(
    norm: Any, x_ND: Tensor, branch_ND: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    eps, offset = NORMS[type(norm).__name__]
    return add_rms_norm(
        x_ND, branch_ND, norm.weight, getattr(norm, eps), offset=offset, dtype=dtype
    )


def _renormed(norm: Any, x_ND: Tensor, h_ND: Tensor, *, keep: bool) -> AbstractContextManager[Any]:
    """Within it ``h_ND``, the norm of ``x_ND``, is not kept but computed again when it is needed.

    Layers keep their input in the type in which it comes, or a copy of their own, which stays.
    """
    if keep:
        return nullcontext()
    x_ND, dtype, shape = x_ND.detach(), h_ND.dtype, h_ND.shape
    address = h_ND.data_ptr()

    def pack(tensor: Tensor) -> Tensor | None:
        same = tensor.data_ptr() == address and tensor.dtype == dtype
        return None if same and tensor.shape == shape else tensor.detach()

    def unpack(packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        with torch.no_grad():
            return _add_norm(norm, x_ND, None, dtype)[1]

    return saved_tensors_hooks(pack, unpack)
