"""Gradient checkpointing of exactly the layers that a backward pass goes through.

Transformers' own switch marks the tower as well and makes the embeddings ask for gradients, and
with them a frozen tower is run backwards for nothing. Here only the layers of the language model
are marked, and those of the tower when some of its parameters are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from foveal.models.family import language_model, vision_is_trained, vision_modules
from foveal.models.state import Checkpointing, state_of

_recompute = partial(checkpoint, use_reentrant=False)
_recompute_certain = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
_WORDS: dict[Checkpointing, str] = {
    True: "twice, inputs kept",
    "offload": "twice, inputs in host memory",
    "selective": "twice in their cheap parts",
    "captured": "twice, completions once where a rollout has kept the inputs",
    "auto": "twice, inputs kept, until a run on a GPU plans it",
}


def parse_checkpointing(value: Any) -> Checkpointing:
    """True, False, "selective", "offload" ("unsloth" means the same), "captured" or "auto".

    Raises:
        ValueError: for anything else.
    """
    if value is True or value is False:
        return value
    if value in ("offload", "unsloth"):
        return "offload"
    if value == "selective":
        return "selective"
    if value == "captured":
        return "captured"
    if value == "auto":
        return "auto"
    raise ValueError(
        f"use_gradient_checkpointing is {value!r}; it must be True, False, 'selective' (only "
        "what is cheap is computed twice), 'offload' (layer inputs in host memory), 'captured' "
        "(layer inputs of completions from the rollout) or 'auto' (the fastest that fits)"
    )


def set_checkpointing(model: nn.Module, policy: Checkpointing, *, by_default: bool = False) -> int:
    """Choose what a training pass keeps of each layer; replaces any earlier choice.

    It acts while the model is in training mode, as everywhere in transformers.

    Args:
        model: stock model or its PEFT wrapper.
        policy: True keeps each layer's input and computes the rest again in the backward pass,
            "offload" keeps the inputs in host memory (pinned where there is a GPU), False keeps
            everything. "selective" keeps in the pass by groups (``foveal.models.training_layer``)
            what attention needs and computes norms and the feed-forward block's first products
            again; stock modules have no room for such a choice, and with them, in the plain pass
            and in a trained tower, it means the same as True. "captured" takes each layer's
            inputs for completions from the rollout, which ``GRPOTrainer`` asks to keep them
            (``foveal.train.captured``); for all else it means the same as True. "auto" leaves the
            choice to ``GRPOTrainer``, which plans each window on a GPU
            (``foveal.train.planning``); until then, and everywhere else, it means the same as True.
        by_default: nobody asked for it, so a run's own setting goes first.

    Returns:
        How many layers are checkpointed now.

    Raises:
        ValueError: for another policy.
    """
    policy = parse_checkpointing(policy)
    tower_layers = [layer for module in vision_modules(model) for layer in _layers(module)]
    decoder_layers = _layers(language_model(model))
    assert decoder_layers, "the language model has no layer that transformers can checkpoint"
    for layer in (*tower_layers, *decoder_layers):
        # Both are defaults of the class, which show again once the instance has none of its own.
        vars(layer).pop("gradient_checkpointing", None)
        vars(layer).pop("_gradient_checkpointing_func", None)
    state = state_of(model)
    state.checkpointing, state.checkpointing_by_default = policy, by_default
    state.record("checkpointing", None)
    if policy is False:
        return 0
    chosen = decoder_layers + (tower_layers if vision_is_trained(model) else [])
    for layer in chosen:
        cast(Any, layer).gradient_checkpointing = True
        cast(Any, layer)._gradient_checkpointing_func = checkpoint_function(policy)
    state.record("checkpointing", f"{len(chosen)} layers are computed {_WORDS[policy]}")
    return len(chosen)


def checkpoint_function(policy: Checkpointing, *, draws: bool = True) -> Callable[..., Any]:
    """What calls a layer, ``function(layer, *inputs)``, so that only its inputs are kept.

    Args:
        policy: True, "offload", or others, which for a whole layer are True.
        draws: layers may draw random numbers. Where they cannot, keeping the generators' states
            for each would only take the host's time.
    """
    assert policy, "nothing is computed twice where everything is kept"
    recompute = _recompute if draws else _recompute_certain
    return partial(recompute_from_host, recompute) if policy == "offload" else recompute


def _layers(module: nn.Module) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def recompute_from_host(
    recompute: Callable[..., Any], layer: Callable[..., Any], *inputs: Any
) -> Any:
    """``recompute(layer, *inputs)``, where the ``inputs`` that it keeps are in host memory.

    What the layer itself would save is dropped by the checkpoint inside, so the hooks around it
    see the inputs alone.
    """
    with saved_tensors_hooks(_to_host, _to_device):
        return recompute(layer, *inputs)


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    if tensor.device.type == "cpu":
        return tensor.device, tensor
    pinned = tensor.device.type == "cuda"
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    # The copy back is on the same stream, so it cannot overtake this one.
    return tensor.device, host.copy_(tensor, non_blocking=pinned)


def _to_device(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, host = packed
    return host.to(device, non_blocking=True)
