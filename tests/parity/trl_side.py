"""The other side of the parity tests: TRL's own trainer, fed with the same rows and completions.

Only the sampling is replaced, in a subclass: templates, image processing, padding, rewards,
advantages, log-probabilities and the loss are TRL's.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest

from foveal.models.lora import target_pattern
from foveal.testing import tiny
from tests.parity.our_side import COMMON, completions, digit_sum, set_adapter

trl = pytest.importorskip("trl", reason="needs trl, the oracle")
datasets = pytest.importorskip("datasets")
gc.freeze()  # as in our_side


class ScriptedTRL(trl.GRPOTrainer):
    """TRL's trainer with completions written down beforehand."""

    rollout_logprobs: list[list[float]] | None = None
    """What the sampler says of each token, row by row; None if it says nothing."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        group = self.num_generations
        answers = [
            completions(ids, self._tokenizer.eos_token_id)[row % group]
            for row, ids in enumerate(prompt_ids)
        ]
        return answers, self.rollout_logprobs


def trl_trainer(
    family: str,
    folder: Path,
    data: list[dict[str, Any]],
    *,
    vision: bool = True,
    trainer_class: Any = ScriptedTRL,
    reward_funcs: Sequence[Any] = (digit_sum,),
    **settings: Any,
) -> Any:
    """TRL's trainer on the model and adapter of ``our_model``.

    The adapter is made by TRL, so that its reference policy is the model without one.
    """
    model, processor = tiny(family)
    targets = target_pattern(model, None, vision=vision, language=True, attention=True, mlp=True)
    trainer = trainer_class(
        model=model,
        reward_funcs=list(reward_funcs),
        args=trl.GRPOConfig(output_dir=str(folder), **{**COMMON, **settings}),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=processor,
        peft_config=peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets),
    )
    set_adapter(trainer.model)
    return trainer
