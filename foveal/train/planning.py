"""The memory plan of a window: from a model and its rows to what ``foveal.memory.planner`` takes.

``gradient_checkpointing="auto"``: when a rollout has given its memory back and the lengths of its
completions are known, the fastest policy that fits is chosen, and smaller pieces where none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from foveal.memory.layer_bytes import ModelSizes, Policy, TrainedFactors, captured_bytes
from foveal.memory.planner import (
    ADAM_BYTES,
    FASTEST_FIRST,
    Layout,
    Plan,
    Prediction,
    choose,
    free_bytes,
    predict,
)
from foveal.models.checkpointing import set_checkpointing
from foveal.models.decoder import Decoder
from foveal.models.family import family_of, language_model, stock_model, vision_is_trained
from foveal.models.packed_lora import lora_of
from foveal.models.precision import HALF_TYPES
from foveal.models.state import Checkpointing, say
from foveal.models.training_layer import why_not_fused
from foveal.train.group_pass import layout, tokens_at_once
from foveal.train.plain_pass import PassSettings, Row

ROOMY_TOKENS = 8192
"""Completion tokens that keep a large GPU busy for longer than their launches take the host. Fewer
at a time save memory, which is not always scarce."""
TOWER_ELEMENTS = (16, 6)
"""Elements that autograd keeps of one patch in one stock layer of a tower, over its width and
over the width of its feed-forward block: an estimate, above what is counted in each family."""


class TrainingPlanner:
    """Plans each window of a run, and says what it chose when that changes.

    Args:
        model: the policy.
        asked: ``gradient_checkpointing`` of the run.
    """

    def __init__(self, model: nn.Module, asked: Checkpointing) -> None:
        self.model = model
        self.asked: Checkpointing = asked
        self._said: tuple[Policy, int | None] | None = None

    def plan(
        self, steps: Sequence[Sequence[Row]], settings: PassSettings, optimizer: Any
    ) -> Plan | None:
        """What to do with a window on a GPU; on other devices, None.

        The plan's ``pass_tokens`` is to be followed: short completions pass in pieces of up to
        ``ROOMY_TOKENS`` where that takes no more than half of what is free. With "auto" the policy
        is set as well.

        Args:
            steps: rows of each optimizer step.
            settings: of the pass, without a plan.
            optimizer: of the run; None where there is none yet.

        Raises:
            ValueError: with "auto", if a single row does not fit.
        """
        device = device_of(self.model)
        if device.type != "cuda":
            return None
        sizes = replace(
            sizes_of(self.model),
            wide_logits=_wide_logits(self.model, settings),
            missing_states=_missing_states(self.model, optimizer),
        )

        def layout_at(bound: int | None) -> Layout:
            bound = roomy if bound is None else bound
            bounded = settings if bound is None else replace(settings, tokens_at_once=bound)
            return [one for rows in steps for one in layout(rows, bounded)]

        roomy = None
        free, margin = free_bytes(device)
        asked = max(tokens_at_once(rows, settings) for rows in steps)
        if settings.tokens_at_once is None and asked < ROOMY_TOKENS:
            # The first window of "captured" is computed with full checkpointing as well.
            policy: Policy = True if self.asked in ("auto", "captured") else self.asked
            peak = predict(sizes, layout_at(ROOMY_TOKENS), policy).peak_bytes
            roomy = ROOMY_TOKENS if peak + sizes.missing_states <= free // 2 else None
        if self.asked != "auto":
            plan = _expectation(sizes, layout_at(None), self.asked, free - margin)
            if self.asked == "captured":
                self._say(plan)
        else:
            plan = choose(sizes, layout_at, free, margin, policies=policies_of(self.model))
            set_checkpointing(self.model, plan.policy)
            self._say(plan)
        return replace(plan, pass_tokens=plan.pass_tokens or roomy)

    def _say(self, plan: Plan) -> None:
        chosen = plan.policy, plan.pass_tokens
        if chosen != self._said:
            self._said = chosen
            say(plan.line)


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes."""
    return stock_model(model).device


def predicted(
    model: nn.Module, rows: Sequence[Row], settings: PassSettings, policy: Checkpointing
) -> Prediction:
    """The highest moment of one pass by groups over ``rows``, from the gradients there are."""
    sizes = replace(sizes_of(model), wide_logits=_wide_logits(model, settings))
    return predict(sizes, layout(rows, settings), True if policy == "auto" else policy)


def policies_of(model: nn.Module) -> tuple[Policy, ...]:
    """Those that differ on this model: where a layer has to be called as it is, little is known
    of what it keeps, and its input alone is kept."""
    if all(why_not_fused(layer) is None for layer in Decoder(model).layers):
        return FASTEST_FIRST
    return (True, "offload")


def sizes_of(model: nn.Module) -> ModelSizes:
    """What the planner has to know about a model, adapted or not."""
    decoder = Decoder(model)
    first, stock = decoder.layers[0], stock_model(model)
    half = decoder.dtype in HALF_TYPES
    trained = [p for p in model.parameters() if p.requires_grad]
    adapters = [
        p
        for name, p in language_model(model).named_parameters()
        if "lora_" in name and p.dtype != decoder.dtype
    ]
    tower_bytes, tower_layers = _tower(model)
    called = any(_is_called(m) for layer in decoder.layers for m in _linears(layer))
    masks = family_of(model).prompt_masks(stock.config, torch.zeros(1, dtype=torch.bool))
    return ModelSizes(
        layers=len(decoder.layers),
        hidden=decoder.hidden,
        inner=first.gate.out_features,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        width=decoder.width,
        vocabulary=decoder.vocabulary,
        windows=tuple(layer.window for layer in decoder.layers),
        head_norms=first.q_norm is not None,
        norms_behind=first.after_mlp is not None,
        masked_prompts=masks is not None,
        called_linears=called,
        # What is kept for a layer that is called as it is, is that layer's affair.
        trained=() if called else tuple(_trained_factors(layer) for layer in decoder.layers),
        stream_bytes=decoder.residual_dtype.itemsize,
        product_bytes=decoder.dtype.itemsize,
        wide_logits=decoder.softcap is not None,
        copied_parameters=sum(p.numel() for p in adapters) if half else 0,
        missing_gradients=sum(p.numel() * p.element_size() for p in trained if p.grad is None),
        tower_token_bytes=tower_bytes,
        tower_layers=tower_layers,
    )


def _linears(layer: Any) -> list[nn.Module]:
    return [module for group in layer.products for module in group]


def _trained_factors(layer: Any) -> TrainedFactors:
    def trained(*modules: nn.Module) -> bool:
        return any(p.requires_grad for module in modules for p in module.parameters())

    return TrainedFactors(
        attention=trained(layer.q, layer.k, layer.v),
        gated=trained(layer.gate, layer.up),
        down=trained(layer.down),
    )


def _is_called(module: nn.Module) -> bool:
    found = lora_of(module)
    return found is None or found[0].weight.requires_grad


def _tower(model: nn.Module) -> tuple[int, int]:
    """Bytes that a trained tower keeps for a prompt token if it keeps everything, and its layers.

    As if every token of a prompt stood for a picture.
    """
    whole = stock_model(model).config
    config = whole.vision_config
    layers = int(getattr(config, "depth", 0) or getattr(config, "num_hidden_layers", 1))
    if not vision_is_trained(model):
        return 0, layers
    # Qwen's projector merges a square of patches into a token, Gemma's pools them to a number.
    if hasattr(config, "spatial_merge_size"):
        patches = config.spatial_merge_size**2
    else:
        patches = (config.image_size // config.patch_size) ** 2 // whole.mm_tokens_per_image
    of_width, of_inner = TOWER_ELEMENTS
    elements = of_width * config.hidden_size + of_inner * config.intermediate_size
    return patches * layers * elements * stock_model(model).dtype.itemsize, layers


def _wide_logits(model: nn.Module, settings: PassSettings) -> bool:
    return Decoder(model).softcap is not None or bool(settings.spec.entropy_coef)


def _missing_states(model: nn.Module, optimizer: Any) -> int:
    known = getattr(optimizer, "state", None) or {}
    missing = (p for p in model.parameters() if p.requires_grad and not known.get(p))
    return sum(p.numel() * ADAM_BYTES for p in missing)


def _expectation(sizes: ModelSizes, asked: Layout, policy: Checkpointing, room: int) -> Plan:
    tokens = max(piece.tokens for one in asked for piece in one.pieces)
    assert policy != "auto", "a policy is chosen before its peak is predicted"
    kept = 0
    if policy == "captured":
        kept = captured_bytes(sizes, sum(piece.fed for one in asked for piece in one.pieces))
    return Plan(policy, None, tokens, predict(sizes, asked, policy), room, captured_bytes=kept)
