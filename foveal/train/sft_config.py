"""``SFTConfig``: settings of a supervised run, on transformers' arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from foveal.data import check_template
from foveal.train.run_config import RunConfig


@dataclass(kw_only=True)
class SFTConfig(RunConfig):
    """Settings of supervised training on completions.

    Everything of ``transformers.TrainingArguments`` is here too: optimizer, schedule, reports,
    checkpoints. ``per_device_train_batch_size`` counts rows of one micro-step, and
    ``per_device_train_batch_size x gradient_accumulation_steps`` those of an optimizer step; its
    loss is the mean over all their completion tokens, however they are split up.
    ``dataloader_num_workers`` processes read, draw and tokenise rows ahead of the GPU.
    """

    # -- defaults of TrainingArguments that differ
    learning_rate: float = field(default=2e-5)
    lr_scheduler_type: Any = field(default="cosine")
    warmup_steps: float = field(default=0.03)
    """A number of steps; below 1, that share of the run."""
    logging_steps: float = field(default=10)
    gradient_checkpointing: Any = field(default=True)
    """True, False, "selective" (only what is cheap is computed twice) or "offload" (layer inputs
    wait in host memory); "auto" is True here. A choice made in ``get_peft_model`` wins."""

    # -- data
    completion_template: str | None = None
    """The completion of rows that have none of their own: ``<answer>{answer}</answer>``. Names in
    braces are columns; ``{answer}`` is the reference answer of any row format."""
    max_prompt_length: int | None = None
    """Longer prompts are dropped, counted and listed; none is cut. None keeps all."""
    max_completion_length: int | None = None
    """A longer completion is an error: cut, it would teach to stop short. None allows any."""
    shuffle_dataset: bool = True
    system_prompt: str | None = None
    """Put before every conversation that has no system message."""
    chat_template_kwargs: dict[str, Any] | None = None

    # -- the training pass
    pass_tokens: int | None = None
    """Tokens (prompts, pictures and completions) of one forward and backward at most; a longer row
    goes alone. None: all rows of a micro-step at once."""
    vision_learning_rate: float | None = None
    """Of the vision tower and its projector; ``learning_rate`` if None. A tower with untrained
    weights wants a larger one than a trained text model."""
    float32_masters: bool = True
    """Keep a float32 copy of every 16-bit weight that is trained, and update that: at small
    learning rates most updates are lost to rounding otherwise. For the optimizers adamw_torch and
    adamw_torch_fused, whose two averages are in float32 then too: 12 bytes a weight beside the 4
    of the weight and its gradient. Weights in float32 (adapters, say) need no copy."""

    # -- evaluation
    eval_answers: int = 0
    """Rows of the evaluation set that are answered greedily and judged by the trainer's
    ``reward_funcs``; 0 computes the loss alone."""
    eval_max_tokens: int = 256
    """Tokens of such an answer at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(self.completion_template)
        for name in ("max_prompt_length", "max_completion_length", "pass_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give a positive number, or None")
        if self.eval_answers < 0:
            raise ValueError(f"eval_answers is {self.eval_answers}; give 0 or a number of rows")
        if self.eval_max_tokens < 1:
            raise ValueError(f"eval_max_tokens is {self.eval_max_tokens}; give 1 or more")
