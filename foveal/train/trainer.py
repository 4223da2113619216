"""``GRPOTrainer``: the loop of transformers' Trainer around the steps of GRPO and GSPO.

    a window of prompts begins
        G completions of each                      rollout backend
        rewards, advantages within groups          rewards, rl
        (old and reference log-probabilities)      only where they can differ
    each micro-step passes through a slot of it
        log-probabilities, loss, backward          train.plain_pass
    each optimizer step
        transformers: clip, step, schedule, log, save, evaluate

The unit is the group: a prompt and its G completions are never split between micro-steps, and no
prompt is stored more than once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import speed_metrics

from foveal.data import RowSource
from foveal.memory import PhaseMeter
from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import placeholder_ids, vision_is_trained
from foveal.models.forward import FeatureCache
from foveal.models.state import say, state_of
from foveal.rewards.call import RewardCaller
from foveal.rl import entropy_threshold, step_normaliser
from foveal.rollout import RolloutBackend, TransformersBackend
from foveal.train import checkpoint as checkpoints
from foveal.train.config import GRPOConfig
from foveal.train.console import Interrupt, RewardProgress, completions_table, console
from foveal.train.metrics import MetricLog, window_metrics
from foveal.train.plain_pass import PassSettings, Row, learn, score
from foveal.train.record import MetricsFile, RolloutFile
from foveal.train.reference import Reference
from foveal.train.schedule import MicroStep, Schedule
from foveal.train.setup import (
    check_policy,
    dataset_prompts,
    prepare_arguments,
    prepare_model,
    prompt_builder,
    refuse_unsupported,
)
from foveal.train.window import Collector, Window
from foveal.train.window_file import load_window, save_window
from foveal.types import Prompt

RewardFunc = str | Callable[..., Any]


class GRPOTrainer(Trainer):
    """Trains a vision-language model on rewards.

    Args:
        model: from ``FastVisionModel``, any supported transformers or PEFT model, or a name.
        reward_funcs: one or several functions with TRL's signature, or names of built-in ones.
        args: a ``GRPOConfig`` (``trl.GRPOConfig`` is taken over field by field).
        train_dataset: anything that ``foveal.data.load_rows`` opens.
        eval_dataset: the same, for evaluation during training.
        processing_class: the model's processor; found by the model's name if None.
        callbacks, optimizers: as in ``transformers.Trainer``.
        peft_config: adapter to add to a model that has none.
        rollout_backend: where completions come from; transformers' generate if None.

    Raises:
        ValueError: for arguments that contradict each other, before anything is computed.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardFunc | Sequence[RewardFunc],
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        rollout_backend: RolloutBackend | None = None,
    ) -> None:
        refuse_unsupported(
            reward_processing_classes=reward_processing_classes,
            quantization_config=quantization_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
        config = prepare_arguments(args, model)
        model, processing_class = prepare_model(model, processing_class, peft_config, config)
        check_policy(model, config)
        self.config: GRPOConfig = config
        self.spec = config.loss_spec()
        self.reward_caller = RewardCaller(_as_list(reward_funcs), config.reward_weights)
        self.builder = prompt_builder(model, processing_class, config)
        self.train_rows, schedule = self._training_data(train_dataset)
        self.eval_rows, self.eval_indices = self._evaluation_data(eval_dataset)
        super().__init__(
            model=model,
            args=config,
            train_dataset=schedule,
            eval_dataset=self.eval_rows,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.reference = Reference(self.model, config.reference) if config.beta else None
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.backend: RolloutBackend = rollout_backend or TransformersBackend(
            self.model, tokenizer, config.rollout_rows
        )
        self.features = FeatureCache()
        self.meter = PhaseMeter(self.args.device)
        self.metrics = MetricLog()
        chosen = state_of(self.model).checkpointing
        if chosen is not None:
            config.gradient_checkpointing = chosen
        self.rollout_file = RolloutFile(config.output_dir)
        self._window: Window | None = None
        self._last_micro_step: MicroStep | None = None
        self._add_callbacks()

    # -- data

    def _training_data(self, dataset: Any) -> tuple[RowSource | None, Schedule | None]:
        if dataset is None:
            return None, None
        rows, indices = dataset_prompts(dataset, self.builder, self.config, "training")
        schedule = Schedule(
            indices,
            prompts_per_slot=self.config.prompts_per_micro_step,
            slots=self.config.steps_per_generation or 1,
            iterations=self.config.num_iterations,
            shuffle=self.config.shuffle_dataset,
            seed=self.config.seed if self.config.data_seed is None else self.config.data_seed,
        )
        return rows, schedule

    def _evaluation_data(self, dataset: Any) -> tuple[RowSource | None, list[int]]:
        if dataset is None:
            return None, []
        return dataset_prompts(dataset, self.builder, self.config, "evaluation")

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            raise ValueError("GRPOTrainer has no train_dataset; give one to train")
        return self.train_dataset.loader()  # pyright: ignore[reportAttributeAccessIssue]

    def num_examples(self, dataloader: Any) -> int:
        schedule = self.train_dataset
        assert isinstance(schedule, Schedule)
        return schedule.windows * schedule.prompts_per_window

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        """Loss shares are normalised by ``rl.step_normaliser``; transformers counts nothing."""

    def _prompts(self, rows: RowSource, indices: Sequence[int]) -> list[Prompt]:
        return [self.builder.build(rows[index], index) for index in indices]

    # -- the step

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Roll out if a window begins, then pass through one slot of it and go backward."""
        micro: MicroStep = inputs
        window = self._window_at(micro)
        model.train()
        with self.meter("train"):
            loss, stats = learn(
                model,
                window.slot_rows(micro.slot, self._slots),
                step_normaliser(self.spec, **self._step_lengths(window, micro)),
                self._pass_settings(),
                cache=self.features,
                backward=self.accelerator.backward,
                entropy_threshold=window.entropy_threshold,
            )
        self.metrics.add_stats(stats)
        self._last_micro_step = micro
        if (micro.slot + 1) % self.args.gradient_accumulation_steps == 0:
            self._close_step()
        return loss

    def _window_at(self, micro: MicroStep) -> Window:
        if self._window is None or self._window.window_id != micro.window_id:
            self._window = self._open_window(micro)
        return self._window

    def _open_window(self, micro: MicroStep) -> Window:
        """Rollout, rewards, advantages; and the log-probabilities that later steps compare with."""
        self.features.clear()
        assert self.train_rows is not None
        with self.meter("data"):
            prompts = self._prompts(self.train_rows, micro.prompt_indices)
        window = self._collector().collect(
            prompts,
            micro.window_id,
            meter=self.meter,
            trainer_state=self.state,
            redraw=self._redraw(micro) if self.config.dynamic_sampling else None,
        )
        if self.config.needs_old_logprobs or self.spec.top_entropy_quantile < 1:
            with self.meter("old_logprob"):
                self._score_old(window)
        if self.reference is not None:
            with self.meter("ref_logprob"), self.reference():
                for row, (logprob, _) in zip(window.rows, self._score(window), strict=True):
                    row.ref_logprob = logprob
        self._note_window(window)
        return window

    def _score_old(self, window: Window) -> None:
        for row, (logprob, entropy) in zip(window.rows, self._score(window), strict=True):
            if self.config.needs_old_logprobs:
                row.old_logprob = logprob
            if self.spec.top_entropy_quantile < 1:
                row.entropy = entropy
        if self.spec.top_entropy_quantile < 1:
            window.entropy_threshold = entropy_threshold(
                torch.cat([_counted(row) for row in window.rows]), self.spec.top_entropy_quantile
            )

    def _score(self, window: Window) -> list[tuple[Tensor, Tensor]]:
        # A tower that is trained gives other features under other weights: nothing to share then.
        shared = not vision_is_trained(self.model)
        self.model.train()
        return [
            scores
            for slot in range(self._slots)
            for scores in score(
                self.model,
                window.slot_rows(slot, self._slots),
                temperature=self.config.temperature,
                rows_at_once=self.config.pass_rows,
                cache=self.features if shared else FeatureCache(),
            )
        ]

    def _redraw(self, micro: MicroStep) -> Callable[[int, int], list[Prompt]]:
        """Other prompts for this window: by seed, window and attempt alone, so resume is exact."""
        assert isinstance(self.train_dataset, Schedule) and self.train_rows is not None
        rows, known = self.train_rows, self.train_dataset.prompt_indices

        def draw(attempt: int, count: int) -> list[Prompt]:
            generator = torch.Generator().manual_seed(
                hash((self.config.seed, *micro.window_id, attempt)) % (1 << 63)
            )
            picks = torch.randint(len(known), (count,), generator=generator).tolist()
            return self._prompts(rows, [known[pick] for pick in picks])

        return draw

    @property
    def _slots(self) -> int:
        return self.config.steps_per_generation or 1

    def _step_lengths(self, window: Window, micro: MicroStep) -> dict[str, Any]:
        """What the normaliser of this micro-step's optimizer step counts."""
        accumulation = self.args.gradient_accumulation_steps
        first = micro.slot // accumulation * accumulation
        rows = [
            row
            for slot in range(first, first + accumulation)
            for row in window.slot_rows(slot, self._slots)
        ]
        lengths: dict[str, Any] = {
            "row_lengths": [row.num_tokens for row in rows],
            "generation_tokens": sum(row.num_tokens for row in window.rows),
            "optimizer_steps": self.config.optimizer_steps_per_pass,
        }
        if window.entropy_threshold is not None:
            kept = [int((_counted(row) >= window.entropy_threshold).sum()) for row in rows]
            lengths["entropy_tokens"] = sum(kept)
        return lengths

    def _pass_settings(self) -> PassSettings:
        return PassSettings(
            spec=self.spec,
            temperature=self.config.temperature,
            rows_at_once=self.config.pass_rows,
            correct_mismatch=self.config.vllm_importance_sampling_correction,
            mismatch_mode=self.config.vllm_importance_sampling_mode,
            mismatch_max=self.config.vllm_importance_sampling_clip_max,
            mismatch_min=self.config.vllm_importance_sampling_clip_min,
        )

    def _collector(self, evaluation: bool = False) -> Collector:
        config = self.config
        generations = config.num_generations
        if evaluation and config.num_generations_eval is not None:
            generations = config.num_generations_eval
        return Collector(
            backend=self.backend,
            rewards=self.reward_caller,
            num_generations=generations,
            # Evaluation draws from its own seed: whether it runs must not change the training.
            sampling=config.sampling_params(config.seed if evaluation else None),
            scale=config.scale_rewards,
            aggregation=config.multi_objective_aggregation,
            mask_truncated=config.mask_truncated_completions,
            never_sampled=frozenset(placeholder_ids(self.model)),
            max_resample_times=config.max_resample_times,
        )

    # -- metrics

    def _note_window(self, window: Window) -> None:
        names = self.reward_caller.names
        self.metrics.add(window_metrics(window, names))
        prompt_tokens = sum(len(row.prompt.ids) for row in window.rows)
        completion_tokens = sum(len(c.ids) for c in window.completions)
        self.state.num_input_tokens_seen += prompt_tokens + completion_tokens
        rollout_seconds = max(self.meter.seconds("rollout"), 1e-9)
        self.metrics.add({"tokens_per_second/rollout": completion_tokens / rollout_seconds})
        if self.config.log_completions:
            self.rollout_file.write(window, names, self.state.global_step)
            shown = self.config.num_completions_to_print
            if shown != 0 and self.state.global_step % max(1, int(self.args.logging_steps)) == 0:
                count = len(window.rows) if shown is None else shown
                console.print(completions_table(window, names, count, self.state.global_step))

    def _close_step(self) -> None:
        """Put the micro-steps' statistics together, and stop if sampler and trainer disagree."""
        values = self.metrics.close_step()
        timings = self.meter.drain()
        self.metrics.add(timings)
        seconds = sum(value for name, value in timings.items() if name.startswith("time/"))
        self.metrics.add({"step_time": seconds})
        if self.spec.entropy_coef:
            self.metrics.add({"entropy_coef": self.spec.entropy_coef})
        gap = values.get("sampling/sampling_logp_difference/mean", 0.0)
        bound = self.config.max_rollout_logprob_difference
        if bound is not None and gap > bound:
            raise RuntimeError(
                f"rollout and trainer log-probabilities differ by {gap:.3f} nats a token on "
                f"average in step {self.state.global_step}, above max_rollout_logprob_difference="
                f"{bound}: they do not compute the same policy. Check that the rollout backend "
                "uses the trainer's weights and temperature, or raise the bound"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.metrics.drain(), "num_tokens": self.state.num_input_tokens_seen}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # inputs are micro-steps, not tensors that could be counted

    # -- evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Roll out and reward every evaluation prompt; metrics as in training, with a prefix."""
        rows, indices = self.eval_rows, self.eval_indices
        if eval_dataset is not None and eval_dataset is not self.eval_rows:
            rows, indices = self._evaluation_data(eval_dataset)
        if rows is None:
            raise ValueError("GRPOTrainer has no eval_dataset; give one to evaluate")
        started = time.time()
        collector, log, meter = self._collector(True), MetricLog(), PhaseMeter(self.args.device)
        at_once = max(1, self.args.per_device_eval_batch_size // collector.num_generations)
        weights: list[int] = []
        parts: list[dict[str, float]] = []
        for start in range(0, len(indices), at_once):
            prompts = self._prompts(rows, indices[start : start + at_once])
            window = collector.collect(prompts, (-1, start), meter=meter, trainer_state=self.state)
            parts.append(window_metrics(window, self.reward_caller.names))
            weights.append(len(prompts))
        for name in dict.fromkeys(name for part in parts for name in part):
            # A reward function may say nothing about a batch, or log something in some only.
            known = [
                (part[name], weight)
                for part, weight in zip(parts, weights, strict=True)
                if math.isfinite(part.get(name, math.nan))
            ]
            mean = sum(v * w for v, w in known) / sum(w for _, w in known) if known else math.nan
            log.add({f"{metric_key_prefix}_{name}": mean})
        metrics = log.drain()
        metrics[f"{metric_key_prefix}_num_tokens"] = self.state.num_input_tokens_seen
        metrics |= speed_metrics(metric_key_prefix, started, len(indices), len(parts))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # -- training, checkpoints, resume

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As ``transformers.Trainer.train``; ``resume_from_checkpoint=True`` takes the last whole
        checkpoint, and a damaged one gives way to the one before it, which is said."""
        if resume_from_checkpoint:
            folder, notices = checkpoints.choose(resume_from_checkpoint, Path(self.args.output_dir))
            for notice in notices:
                say(f"{notice}; resuming from {folder.name} instead")
            resume_from_checkpoint = str(folder)
        self._window = None
        self._last_micro_step = None
        policy = self.config.gradient_checkpointing
        set_checkpointing(self.model, policy)
        # transformers would switch it on in its own way, which hooks a frozen tower as well.
        self.args.gradient_checkpointing = False
        try:
            with self._interrupt:
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.args.gradient_checkpointing = policy
            self._progress.close()

    def _add_callbacks(self) -> None:
        self._interrupt = Interrupt()
        self._progress = RewardProgress(self.metrics)
        self.remove_callback(PrinterCallback)
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(self._progress)
        self.add_callback(self._interrupt)
        self.add_callback(MetricsFile(self.args.output_dir))
        self.add_callback(_EpochStart(self))

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first micro-step of an epoch, or of what is left of it."""
        assert isinstance(self.train_dataset, Schedule)
        self.train_dataset.epoch = epoch

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoints.STAGING) if self._staging else folder

    _staging = False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write into a staging folder, then publish: a checkpoint is whole or absent."""
        run = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(run / name)
        staged = checkpoints.staging(run) / name
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        if self.state.best_model_checkpoint == str(staged):
            self.state.best_model_checkpoint = str(run / name)
            self.state.save_to_json(str(staged / "trainer_state.json"))
        checkpoints.publish(staged, run / name)
        best = self.state.best_model_checkpoint
        checkpoints.rotate(run, name, self.args.save_total_limit, best)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._window is not None and not self._window_is_used_up():
            save_window(self._window, Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.train_rows is not None:
            rows = self.train_rows
            self._window = load_window(
                Path(checkpoint), lambda indices: self._prompts(rows, indices), self.args.device
            )

    def _window_is_used_up(self) -> bool:
        last = self._last_micro_step
        assert last is not None
        return last.slot + 1 == self._slots and last.iteration + 1 == self.config.num_iterations


class _EpochStart(TrainerCallback):
    """Tells the trainer which epoch begins, also when a run is resumed within one."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.config.log_completions:
            self.trainer.rollout_file.start(state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.begin_epoch(int(state.epoch or 0))


def _as_list(reward_funcs: Any) -> list[Any]:
    return list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]


def _counted(row: Row) -> Tensor:
    """Entropies of the tokens that take part in the loss."""
    assert row.entropy is not None
    return row.entropy[torch.tensor(row.counts, device=row.entropy.device)]
