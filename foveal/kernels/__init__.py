"""One operation a file: a torch reference (the specification), faster forms, and the function
that chooses between them. Nothing here knows a model."""

from foveal.kernels.head_logprob import head_logprob, head_logprob_reference
from foveal.kernels.varlen_attention import varlen_attention, varlen_attention_reference

__all__ = [
    "head_logprob",
    "head_logprob_reference",
    "varlen_attention",
    "varlen_attention_reference",
]
