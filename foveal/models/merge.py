"""Adapters merged into 16-bit weights, written as an ordinary checkpoint.

Each merged weight is the base in float32 plus the adapter in float32, rounded once. The live model
is only read.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.attention import stock_config
from foveal.models.family import stock_model
from foveal.models.precision import HALF_TYPES
from foveal.models.state import quiet, say, state_of

Factors = tuple[Tensor, Tensor, float]
"""``(A_RI, B_OR, scale)``: rank R, I inputs and O outputs; the weight grows by scale * B @ A."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The weights of an ordinary checkpoint, and how far rounding moved them."""

    tensors: dict[str, Tensor]
    """By the names of the stock model's state dict. What needed no change is not copied."""
    source: Any
    """The stock model, without quantisation, that the weights were read from."""
    layers: int
    """How many layers had an adapter."""
    largest_difference: float
    """Largest absolute difference between a weight merged in float32 and the one in ``tensors``."""
    largest_name: str | None
    """Where it is; None if nothing was rounded."""


def merged_state_dict(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Base weights plus adapters in ``dtype``, by the names of the stock model's state dict.

    Raises:
        ValueError: if the base is quantised and its 16-bit weights are nowhere to be read.
    """
    return merge(model, dtype).tensors


def merge(model: nn.Module, dtype: torch.dtype) -> Merged:
    """What :func:`merged_state_dict` returns, with the rounding measured.

    Args:
        model: stock model or its PEFT wrapper; the active adapter is merged.
        dtype: of the floating-point weights.
    """
    stock = stock_model(model)
    adapters = _adapter_factors(stock)
    source = _source(stock)
    base = _plain_names(source.state_dict())
    unknown = sorted(adapters.keys() - base.keys())
    assert not unknown, f"adapters of weights that the base does not have: {unknown}"
    tensors: dict[str, Tensor] = {}
    stored: dict[tuple[Any, ...], Tensor] = {}
    largest, largest_name = 0.0, None
    for name, weight in base.items():
        if name not in adapters:
            # Tied weights are one tensor under two names and must stay one.
            key = (weight.data_ptr(), weight.shape, weight.stride())
            tensors[name] = stored.setdefault(key, _cast(weight, dtype))
            exact = weight
        else:
            exact = _add(weight, adapters[name])
            tensors[name] = exact.to(dtype).cpu()
        difference = _difference(exact, tensors[name])
        if difference > largest:
            largest, largest_name = difference, name
    return Merged(
        tensors=tensors,
        source=source,
        layers=len(adapters),
        largest_difference=largest,
        largest_name=largest_name,
    )


def save_pretrained_merged(
    model: nn.Module,
    folder: str | Path,
    processor: Any = None,
    save_method: str = "merged_16bit",
    dtype: torch.dtype | None = None,
) -> None:
    """Write the model with its adapter merged in: a checkpoint that the stock class loads.

    Prints how far the stored weights are from those merged in float32.

    Args:
        model: stock model or its PEFT wrapper.
        folder: made if it does not exist.
        processor: written beside the weights; None leaves it out.
        save_method: "merged_16bit"; for the adapter alone use ``model.save_pretrained(folder)``.
        dtype: of the stored weights; the model's own if that is 16 bit, otherwise bfloat16.

    Raises:
        ValueError: for another method, or if ``folder`` holds the base weights.
    """
    if save_method != "merged_16bit":
        raise ValueError(
            f"save_method is {save_method!r}; only 'merged_16bit' is supported (the adapter alone "
            "is written by model.save_pretrained)"
        )
    stock, state = stock_model(model), state_of(model)
    if state.model_name is not None and Path(folder).resolve() == Path(state.model_name).resolve():
        raise ValueError(f"{str(folder)!r} holds the base weights; choose another folder")
    chosen = dtype or (stock.dtype if stock.dtype in HALF_TYPES else torch.bfloat16)
    merged = merge(model, chosen)
    shell = _shell(merged.source, chosen)
    shell.generation_config = copy.deepcopy(stock.generation_config)
    with quiet():
        shell.save_pretrained(folder, state_dict=merged.tensors)
    if processor is not None:
        processor.save_pretrained(folder)
    where = "" if merged.largest_name is None else f" (in {merged.largest_name})"
    say(
        f"merged {merged.layers} adapted layers into {folder}, stored in "
        f"{str(chosen).removeprefix('torch.')}: largest difference from float32 "
        f"{merged.largest_difference:.3g}{where}"
    )


def bind_merged_saving(model: nn.Module) -> None:
    """Let ``model.save_pretrained_merged(folder, processor)`` work, adapted or not."""
    stock = stock_model(model)
    stock.save_pretrained_merged = types.MethodType(save_pretrained_merged, stock)


def _adapter_factors(stock: nn.Module) -> dict[str, list[Factors]]:
    """What each active adapter adds, by the plain name of the weight it is added to."""
    from peft.tuners.lora import LoraLayer

    factors: dict[str, list[Factors]] = {}
    for path, layer in stock.named_modules():
        if isinstance(layer, LoraLayer) and (active := _active_factors(layer)):
            factors[f"{path}.weight"] = active
    return factors


def _active_factors(layer: Any) -> list[Factors]:
    return [
        (layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
        for name in layer.active_adapters
        if name in layer.lora_A and name not in layer.merged_adapters
    ]


def _source(stock: Any) -> Any:
    """A model with the base weights in 16 bit or more: the live one, or its checkpoint again."""
    state = state_of(stock)
    if state.quantisation is None:
        return stock
    if state.model_name is None:
        raise ValueError(
            "the base is quantised and it is not known where its 16-bit weights are; set "
            "state_of(model).model_name to their folder or hub id"
        )
    with quiet():
        source = type(stock).from_pretrained(
            state.model_name, revision=state.revision, dtype="auto"
        )
    if getattr(source, "hf_quantizer", None) is not None:
        raise ValueError(
            f"{state.model_name} holds quantised weights only; set state_of(model).model_name to "
            "the 16-bit checkpoint that they were made from, or keep the adapter as it is "
            "(model.save_pretrained)"
        )
    return source


def _plain_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as they are without adapters."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in state_dict.items()
        if not any(part.startswith("lora_") for part in name.split("."))
    }


@torch.no_grad()
def _add(weight: Tensor, factors: list[Factors]) -> Tensor:
    total = weight.to(factors[0][0].device, torch.float32, copy=True)
    for a_RI, b_OR, scale in factors:
        total.addmm_(b_OR.float(), a_RI.float(), alpha=scale)
    return total


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) if weight.is_floating_point() else weight


def _difference(exact: Tensor, stored: Tensor) -> float:
    if exact.dtype == stored.dtype or not exact.numel():
        return 0.0
    return float((exact.float() - stored.to(exact.device).float()).abs().max())


def _shell(source: Any, dtype: torch.dtype) -> Any:
    """A model without weights that knows how to write a checkpoint of ``source``'s kind."""
    with torch.device("meta"):
        shell = type(source)(stock_config(source)).to(dtype)
    # The names that the checkpoint used, where transformers renamed them while loading.
    conversions = getattr(source, "_weight_conversions", None)
    if conversions is not None:
        shell._weight_conversions = conversions
    return shell
