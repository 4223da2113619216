"""What every kind of run shares around transformers' loop: checkpointing, callbacks, metrics."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from foveal.models.checkpointing import set_checkpointing
from foveal.models.state import state_of
from foveal.train.console import Interrupt, RunProgress
from foveal.train.metrics import MetricLog
from foveal.train.record import MetricsFile
from foveal.train.run_config import RunConfig
from foveal.train.whole_checkpoints import WholeCheckpoints


class Run(WholeCheckpoints):
    """A trainer with our gradient checkpointing, progress, metrics file and quiet Ctrl-C.

    A subclass sets ``config`` before it calls this class's ``__init__``, and then calls
    :meth:`settle_checkpointing` and :meth:`add_run_callbacks`.
    """

    config: RunConfig

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.metrics = MetricLog()

    def settle_checkpointing(self) -> None:
        """Take the model's own gradient checkpointing for the run's where somebody chose one."""
        state = state_of(self._trained())
        self._own_checkpointing = state.checkpointing is None or state.checkpointing_by_default
        """Neither the model's maker nor its user chose; the run's setting counts."""
        if not self._own_checkpointing:
            self.config.gradient_checkpointing = state.checkpointing

    def add_run_callbacks(self, progress: RunProgress) -> None:
        """``metrics.jsonl``, the bar, Ctrl-C, and :meth:`begin_epoch`."""
        self._interrupt = Interrupt()
        self._progress = progress
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(self._progress)
        self.add_callback(self._interrupt)
        self.add_callback(MetricsFile(self.config.run_folder))
        self.add_callback(_EpochStart(self))

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first micro-step of an epoch, or of what is left of it."""

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As ``transformers.Trainer.train``; ``resume_from_checkpoint=True`` takes the last whole
        checkpoint, and a damaged one gives way to the one before it, which is said."""
        resume_from_checkpoint = self.resume_point(resume_from_checkpoint)
        policy = self.config.gradient_checkpointing
        set_checkpointing(self._trained(), policy, by_default=self._own_checkpointing)
        # transformers would switch it on in its own way, which hooks a frozen tower as well.
        self.args.gradient_checkpointing = False
        try:
            with self._interrupt:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.args.gradient_checkpointing = policy
            if policy == "auto":
                # A plan was for its window alone.
                set_checkpointing(self._trained(), policy, by_default=self._own_checkpointing)
            self._progress.close()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with a training step's own metrics and the tokens seen so far."""
        if "loss" in logs:
            logs = {**logs, **self.metrics.drain(), "num_tokens": self.state.num_input_tokens_seen}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # inputs are micro-steps, not tensors that could be counted

    def _trained(self) -> Any:
        assert self.model is not None
        return self.model


class _EpochStart(TrainerCallback):
    """Tells the trainer which epoch begins, also when a run is resumed within one."""

    def __init__(self, trainer: Run) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))
