"""``FastVisionModel``: load, adapt, generate, switch between training and inference, save.

model, processor = FastVisionModel.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
model = FastVisionModel.get_peft_model(model, r=16, finetune_vision_layers=False)
model.fast_generate("What is a fovea?")
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from foveal.generate import bind_generation
from foveal.models import load, lora, merge

P = ParamSpec("P")


def _with_generation(loader: Callable[P, tuple[Any, Any]]) -> Callable[P, tuple[Any, Any]]:
    """A loader of model and processor that binds ``model.fast_generate`` as well."""

    @functools.wraps(loader)
    def loaded(*args: P.args, **options: P.kwargs) -> tuple[Any, Any]:
        model, processor = loader(*args, **options)
        bind_generation(model, processor)
        return model, processor

    return loaded


class FastVisionModel:
    """The way in. Every function takes and returns ordinary transformers and PEFT models.

    A model from ``from_pretrained`` has ``fast_generate`` (``foveal.generate``), which an adapter
    put on it later does not hide.
    """

    from_pretrained = staticmethod(_with_generation(load.from_pretrained))
    get_peft_model = staticmethod(lora.get_peft_model)
    load_adapter = staticmethod(lora.load_adapter)
    for_training = staticmethod(load.for_training)
    for_inference = staticmethod(load.for_inference)
    save_pretrained_merged = staticmethod(merge.save_pretrained_merged)
