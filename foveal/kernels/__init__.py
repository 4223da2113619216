"""One operation a file: a torch reference (the specification), faster forms, and the function
that chooses between them. Nothing here knows a model."""

from foveal.kernels.draw import draw, draw_reference
from foveal.kernels.head_logprob import (
    head_logprob,
    head_logprob_reference,
    head_policy_gradient,
)
from foveal.kernels.philox import philox_uniform, row_seed
from foveal.kernels.prefix_attention import (
    causal_attention,
    prefix_attention,
    prefix_attention_reference,
)
from foveal.kernels.varlen_attention import varlen_attention, varlen_attention_reference
from foveal.kernels.vision_rotary import rotate, rotate_reference

__all__ = [
    "causal_attention",
    "draw",
    "draw_reference",
    "head_logprob",
    "head_logprob_reference",
    "head_policy_gradient",
    "philox_uniform",
    "prefix_attention",
    "prefix_attention_reference",
    "rotate",
    "rotate_reference",
    "row_seed",
    "varlen_attention",
    "varlen_attention_reference",
]
