"""What a training pass keeps of a token in each layer, and what it works with there.

A list of named tensors, counted from what each autograd function of
``foveal.models.training_layer`` and ``foveal.models.fused_lora`` saves and makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FLOAT32 = 4

Policy = bool | Literal["selective", "offload", "captured"]
"""As of ``foveal.models.checkpointing.set_checkpointing``."""
Kind = Literal["stream", "product", "float32"]
Tensors = dict[str, tuple[int, Kind]]
"""By name: elements a token, and the type that they have."""


class TrainedFactors(NamedTuple):
    """Where a layer's products have an adapter, whose gradient takes their input."""

    attention: bool = True
    """q, k or v."""
    gated: bool = True
    """gate or up."""
    down: bool = True


ALL_TRAINED = TrainedFactors()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What has to be known about a model."""

    layers: int
    hidden: int
    inner: int
    """F: width of the feed-forward block."""
    heads: int
    kv_heads: int
    width: int
    """C: of a head."""
    vocabulary: int
    windows: tuple[int, ...] = ()
    """Sliding window of each layer, 0 for none; () for none at all."""
    head_norms: bool = False
    """Queries and keys have norms of their own (Qwen3, Gemma 3)."""
    norms_behind: bool = False
    """Attention and feed-forward block have norms behind them (Gemma 3)."""
    masked_prompts: bool = False
    """Attention inside a prompt takes a mask, and keys and values of every head (Gemma 3)."""
    called_linears: bool = False
    """Linear layers are called as they are, because they are quantised or trained themselves."""
    stream_bytes: int = 2
    """A number of the residual stream."""
    product_bytes: int = 2
    """A number that goes into or comes out of a product."""
    wide_logits: bool = False
    """Two float32 tensors of a chunk's size: capped logits, or entropy in the loss."""
    trained: tuple[TrainedFactors, ...] = ()
    """Of each layer; () for adapters in all products."""
    copied_parameters: int = 0
    """Of adapters that the pass copies in the type of the products."""
    missing_gradients: int = 0
    """Bytes of the gradients that do not exist yet."""
    missing_states: int = 0
    """Bytes of the optimizer's state that do not exist yet; taken after the pass."""
    tower_token_bytes: int = 0
    """What a trained tower keeps for each prompt token under a policy that keeps everything."""
    tower_layers: int = 1

    def trained_in(self, layer: int) -> TrainedFactors:
        return self.trained[layer] if self.trained else ALL_TRAINED

    @property
    def kv(self) -> int:
        """Elements of a token's keys and values in one layer."""
        return 2 * self.kv_heads * self.width


def kept_tensors(
    sizes: ModelSizes,
    policy: Policy,
    *,
    prompt: bool = False,
    trained: TrainedFactors = ALL_TRAINED,
) -> Tensors:
    """What autograd keeps on the device of one token in one layer.

    Args:
        sizes: of the model.
        policy: what is asked to be kept.
        prompt: of a prompt's token; else of a completion's.
        trained: in the layer.
    """
    kept = _all_tensors(sizes, prompt, trained)
    if policy == "offload" or (policy == "captured" and not prompt):
        return {}
    if policy is True or policy == "captured":
        return {"x": kept["x"]}
    if policy == "selective":
        again = ("x normed", "x' normed", "gate", "up", "act(gate) up")
        return {name: size for name, size in kept.items() if name not in again}
    return kept


def _all_tensors(s: ModelSizes, prompt: bool, trained: TrainedFactors) -> Tensors:
    D, F, Q, K = s.hidden, s.inner, s.heads * s.width, s.kv_heads * s.width
    kept: Tensors = {
        "x": (D, "stream"),
        "x normed": (D, "product"),
        "q": (Q, "product"),
        "k": (K, "product"),
        "v": (K, "product"),
        "attended": (Q, "product"),
        "log-sum-exp": (s.heads, "float32"),
        "x'": (D, "stream"),
        "x' normed": (D, "product"),
        "gate": (F, "product"),
        "up": (F, "product"),
        "1 / rms": (2, "float32"),
    }
    if s.head_norms:
        kept["q before its norm"] = (Q, "product")
        kept["k before its norm"] = (K, "product")
        kept["1 / rms of heads"] = (s.heads + s.kv_heads, "float32")
    if s.norms_behind:
        kept["o's result"] = (D, "product")
        kept["down's result"] = (D, "product")
        kept["1 / rms behind"] = (2, "float32")
    if s.called_linears:
        kept["act(gate) up"] = (F, "product")
    if prompt and s.masked_prompts:
        kept["k and v of every head"] = (2 * Q, "product")
        kept["attended, prompt by prompt"] = (Q, "product")
    if not trained.attention:
        del kept["x normed"]
    if not trained.gated:
        del kept["x' normed"]
    return kept


def captured_bytes(sizes: ModelSizes, tokens: int) -> int:
    """Streams that a rollout keeps for the policy "captured", of so many fed tokens: one a layer
    (``foveal.models.layer_inputs``)."""
    return tokens * sizes.layers * sizes.hidden * sizes.stream_bytes


def working_tensors(
    sizes: ModelSizes,
    policy: Policy,
    *,
    prompt: bool = False,
    trained: TrainedFactors = ALL_TRAINED,
) -> Tensors:
    """What the backward pass of a layer needs of a token beside what is kept: the gradients of its
    feed-forward block, and what is computed again."""
    D, F = sizes.hidden, sizes.inner
    work: Tensors = {
        "gradient of the stream": (D, "stream"),
        "gradient of down's result": (D, "product"),
    }
    if policy == "selective":
        work["x' normed"] = (D, "product")
        # Two of the gradients take the memory of gate and up, where we compute them.
        work["gate, up"] = (2 * F, "product")
        work["gradients inside"] = (F, "product")
        if sizes.called_linears:
            work["act(gate) up"] = (F, "product")
            work["gradients inside"] = (3 * F, "product")
        return work
    # In gate and up; and the product of both again, for the factors of down.
    work["gradients inside"] = ((3 if trained.down else 2) * F, "product")
    if policy is not False:
        kept = kept_tensors(sizes, policy, prompt=prompt, trained=trained)
        again = _all_tensors(sizes, prompt, trained).items()
        work |= {name: size for name, size in again if name not in kept}
    return work


def token_bytes(sizes: ModelSizes, tensors: Tensors) -> int:
    """Of all tensors, for one token."""
    of = {"stream": sizes.stream_bytes, "product": sizes.product_bytes, "float32": FLOAT32}
    return sum(elements * of[kind] for elements, kind in tensors.values())
