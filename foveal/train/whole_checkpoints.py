"""transformers' Trainer with checkpoints that are whole or absent (see ``checkpoint``)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer

from foveal.models.state import say
from foveal.train import checkpoint


class WholeCheckpoints(Trainer):
    """Saves into a staging folder and publishes it by one rename; resumes from what is whole."""

    _staging = False

    def resume_point(self, wanted: Any) -> str | None:
        """The checkpoint folder to resume from, or None to start anew; says what is damaged.

        Raises:
            ValueError: if a checkpoint is wanted and none is whole.
        """
        if not wanted:
            return None
        folder, notices = checkpoint.choose(wanted, Path(str(self.args.output_dir)))
        for notice in notices:
            say(f"{notice}; resuming from {folder.name} instead")
        return str(folder)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoint.STAGING) if self._staging else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(run / name)
        staged = checkpoint.staging(run) / name
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(run / name)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        checkpoint.publish(staged, run / name)
        best = self.state.best_model_checkpoint
        checkpoint.rotate(run, name, self.args.save_total_limit, best)
