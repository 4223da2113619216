"""Facts about each model family, in one frozen table, and the way to reach its functions.

Each family has one module with a ``FAMILY`` and the same functions under the same names, so that
a diff of two of those files answers "what differs?":

    encode_images(model, images)              pictures -> features of each
    row_positions(config, prompt, length)     rotary positions of a row
    prompt_masks(config, image_L)             who sees whom in a prompt
    decoder_inputs(model, batch, embeds, features)
                                              what the language model takes beside embeddings
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from foveal.models.rows import RowBatch
    from foveal.types import ImageInput, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What has to be known about a family before a model of it is built."""

    model_type: str
    """``config.model_type`` of its checkpoints."""
    model_class: str
    """Name of the stock class in transformers."""
    vision_paths: tuple[str, ...]
    """Modules that see pictures: the tower and the projector."""
    language_path: str
    """The decoder stack."""
    attention_linears: tuple[str, ...]
    """Linear layers of attention, in the tower and in the decoder."""
    mlp_linears: tuple[str, ...]
    """Linear layers of feed-forward blocks, in the tower, the projector and the decoder."""
    placeholder_fields: tuple[str, ...]
    """Config fields with the ids that stand for pictures and videos; never sampled."""
    packed_vision: bool
    """The tower packs windows and pictures into one sequence and attends inside each."""
    fp32_residual: bool
    """The residual stream outgrows float16 (65,504): keep it in float32 where weights are fp16."""
    gated_vision: bool = False
    """Feed-forward blocks of the tower have a gate: gate_proj, up_proj and down_proj."""
    norm_adds_one: bool = False
    """Norms multiply by 1 + weight, before rounding."""
    gelu: bool = False
    """The gate of a feed-forward block is a tanh GELU; otherwise SiLU."""
    answer_coordinates: str = "0-1000"
    """The ``foveal.coordinates`` space in which its models were taught to give boxes and points.
    Gemma 3 was taught none, so the common one of later models."""


class FamilyModule(Protocol):
    """The functions that every family module provides."""

    FAMILY: Family

    def encode_images(
        self, model: nn.Module, images: Sequence[ImageInput]
    ) -> list[tuple[Tensor, ...]]:
        """Features of each picture: ``(features_MD, *deepstack_MD)``."""
        ...

    def row_positions(self, config: Any, prompt: Prompt, length: int) -> Tensor:
        """Rotary positions of a prompt continued to ``length``: ``[3, T]`` or ``[1, T]``."""
        ...

    def prompt_masks(self, config: Any, image_L: Tensor) -> dict[str, Tensor] | None:
        """Who sees whom in a prompt with pictures at ``image_L``, by kind of layer; None is
        causal attention."""
        ...

    def decoder_inputs(
        self,
        model: nn.Module,
        batch: RowBatch,
        embeds_BLD: Tensor,
        features: Sequence[tuple[Tensor, ...]],
    ) -> dict[str, Any]:
        """Keyword arguments of the language model beside ``inputs_embeds``."""
        ...


FAMILY_MODULES = {
    "qwen2_5_vl": "foveal.models.qwen2_5_vl",
    "qwen3_vl": "foveal.models.qwen3_vl",
    "gemma3": "foveal.models.gemma3",
}


def family_module(model_type: str) -> FamilyModule:
    """The functions of a family.

    Raises:
        ValueError: if the family is not supported; the message lists those that are.
    """
    if model_type not in FAMILY_MODULES:
        raise ValueError(
            f"model type {model_type!r} is not supported; supported are "
            f"{', '.join(sorted(FAMILY_MODULES))}"
        )
    return cast(FamilyModule, importlib.import_module(FAMILY_MODULES[model_type]))


def stock_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model


def family_of(model: nn.Module) -> FamilyModule:
    """The family functions for a loaded model, adapted or not."""
    return family_module(stock_model(model).config.model_type)


def vision_modules(model: nn.Module) -> list[nn.Module]:
    """Tower and projector of a model."""
    stock = stock_model(model)
    return [stock.get_submodule(path) for path in family_of(model).FAMILY.vision_paths]


def language_model(model: nn.Module) -> Any:
    """The decoder stack of a model."""
    return stock_model(model).get_submodule(family_of(model).FAMILY.language_path)


def vision_is_trained(model: nn.Module) -> bool:
    """Whether any parameter of the tower or the projector asks for a gradient."""
    return any(p.requires_grad for module in vision_modules(model) for p in module.parameters())


def placeholder_ids(model: nn.Module) -> tuple[int, ...]:
    """Token ids that stand for pictures and videos; a policy must never sample them."""
    config = stock_model(model).config
    ids = (getattr(config, field, None) for field in family_of(model).FAMILY.placeholder_fields)
    return tuple(sorted({int(i) for i in ids if i is not None}))


def final_softcap(model: nn.Module) -> float | None:
    """The cap on final logits that some Gemma models have."""
    return getattr(stock_model(model).config.get_text_config(), "final_logit_softcapping", None)
