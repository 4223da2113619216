"""What the settings of every kind of run share, on top of transformers' own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

CHECKPOINTING = (True, False, "selective", "offload", "captured", "auto")
_NOT_ASKED: Any = TrainingArguments.__dataclass_fields__["gradient_checkpointing"].default


@dataclass(kw_only=True)
class RunConfig(TrainingArguments):
    """``transformers.TrainingArguments`` with our gradient checkpointing in the place of theirs."""

    gradient_checkpointing: Any = field(default=True)
    """True, False, "selective", "offload", "captured" or "auto", as of ``set_checkpointing``."""
    logging_nan_inf_filter: bool = field(default=False)
    """Whether a loss that is not finite is logged as the mean of those before it: it hides a run
    that fails, and asks the GPU for the loss of every micro-step."""
    remove_unused_columns: bool | None = field(default=False)
    model_init_kwargs: dict[str, Any] | None = None
    """Arguments of ``FastVisionModel.from_pretrained`` where ``model`` is a name."""

    def __post_init__(self) -> None:
        policy = self.gradient_checkpointing
        # The newer name of the same field; a configuration of TRL has both.
        asked = getattr(self, "activation_checkpointing", None)
        if asked is not None:
            policy = asked and (policy or True)
        # transformers' own switch also hooks frozen vision towers into the backward pass.
        self.gradient_checkpointing = _NOT_ASKED
        self.activation_checkpointing = None
        super().__post_init__()
        self.activation_checkpointing = None
        self.gradient_checkpointing = "offload" if policy == "unsloth" else policy
        if self.gradient_checkpointing not in CHECKPOINTING:
            raise ValueError(
                f"gradient_checkpointing is {self.gradient_checkpointing!r}; it must be True, "
                'False, "selective", "offload", "captured" or "auto"'
            )

    @property
    def run_folder(self) -> Path:
        return Path(str(self.output_dir))
