"""``GRPOTrainer``: the loop of transformers' Trainer around the steps of GRPO and GSPO.

    a window of prompts begins
        G completions of each                      rollout backend
        rewards, advantages within groups          rewards, rl
        (old and reference log-probabilities)      only where they can differ
    each optimizer step passes through a part of it
        log-probabilities, loss, backward          train.group_pass
        transformers: clip, step, schedule, log, save, evaluate

The unit is the group: a prompt and its G completions are never split between optimizer steps, and
no prompt is stored more than once. Micro-steps are what transformers counts; the last one of each
optimizer step does the work of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import speed_metrics

from foveal.data import RowSource
from foveal.memory import PhaseMeter
from foveal.models.family import placeholder_ids
from foveal.models.forward import FeatureCache
from foveal.rewards.call import RewardCaller
from foveal.rollout import Engine, RolloutBackend, engine_of
from foveal.train.captured import CapturedRun
from foveal.train.config import GRPOConfig
from foveal.train.console import RunProgress, completions_table, console
from foveal.train.evaluation import evaluation_metrics
from foveal.train.metrics import window_metrics
from foveal.train.planning import TrainingPlanner
from foveal.train.prompt_source import PromptSource, prompt_source
from foveal.train.record import RolloutFile
from foveal.train.reference import Reference
from foveal.train.run import Run
from foveal.train.schedule import MicroStep, Schedule
from foveal.train.scoring import (
    PASSES,
    normaliser_of,
    pass_settings,
    score_old,
    score_steps,
    step_rows,
)
from foveal.train.setup import (
    check_policy,
    dataset_prompts,
    prepare_arguments,
    prepare_model,
    prompt_builder,
    refuse_unsupported,
)
from foveal.train.window import Collector, Window
from foveal.types import Prompt

RewardFunc = str | Callable[..., Any]


class GRPOTrainer(Run):
    """Trains a vision-language model on rewards.

    Args:
        model: from ``FastVisionModel``, any supported transformers or PEFT model, or a name.
        reward_funcs: one or several functions with TRL's signature, or names of built-in ones.
        args: a ``GRPOConfig`` (``trl.GRPOConfig`` is taken over field by field).
        train_dataset: anything that ``foveal.data.load_rows`` opens, streams included, a task, or
            a ``foveal.data.mixture``.
        eval_dataset: the same, for evaluation during training.
        processing_class: the model's processor; found by the model's name if None.
        callbacks, optimizers: as in ``transformers.Trainer``.
        peft_config: adapter to add to a model that has none.
        rollout_backend: where completions come from; the engine if None.

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
        self.prompts: PromptSource | None = None
        """Where training prompts come from, if there are any."""
        if train_dataset is not None:
            self.prompts = prompt_source(train_dataset, config, self.builder, self.reward_caller)
        self.eval_rows, self.eval_indices = self._evaluation_data(eval_dataset)
        super().__init__(
            model=model,
            args=config,
            train_dataset=self.prompts and self.prompts.schedule,
            eval_dataset=self.eval_rows,  # pyright: ignore[reportArgumentType]
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.policy: nn.Module = model
        """The model, adapted: what is sampled from and trained."""
        self.reference = Reference(model, config.reference) if config.beta else None
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.features = FeatureCache()
        """Encoded pictures of a window, for rollout and training alike."""
        self._engine: Engine | None = None
        if rollout_backend is None:
            self._engine = engine_of(model, tokenizer, max_rows=config.rows_at_once)
        self.backend: RolloutBackend = rollout_backend or self._engine  # pyright: ignore
        self.meter = PhaseMeter(self.args.device)
        self.settle_checkpointing()
        self.captured = CapturedRun(model, config, self.backend)
        self.planner = TrainingPlanner(model, config.gradient_checkpointing)
        self.rollout_file = RolloutFile(config.run_folder)
        self._window: Window | None = None
        self._planned_id: tuple[int, int] | None = None
        self._last_micro_step: MicroStep | None = None
        self.add_run_callbacks(RunProgress(self.metrics, "reward"))
        self.add_callback(_RolloutFileStart(self))

    # -- data

    def _evaluation_data(self, dataset: Any) -> tuple[RowSource | None, list[int]]:
        if dataset is None:
            return None, []
        return dataset_prompts(dataset, self.builder, self.reward_caller, "evaluation")

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

    def _evaluation_prompts(self, rows: RowSource, indices: Sequence[int]) -> list[Prompt]:
        # Pictures of the batch before are done with; a whole evaluation set would fill the GPU.
        self.features.clear()
        return self._prompts(rows, indices)

    # -- the step

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Roll out if a window begins; learn from the optimizer step's rows at its last micro-step.

        All rows of a step pass together, in pieces of the batch size asked for: a prompt's
        completions meet again however they were divided, and prompts pass side by side.
        """
        micro: MicroStep = inputs
        window = self._window_at(micro)
        self._last_micro_step = micro
        step, place = divmod(micro.slot, self.args.gradient_accumulation_steps)
        if place < self.args.gradient_accumulation_steps - 1:
            return torch.zeros((), device=self.args.device)
        model.train()
        with self.meter("train"):
            loss, stats = self.captured.learn(
                step_rows(window, step, self.config),
                lambda rows: PASSES[self.config.training_pass].learn(
                    model,
                    rows,
                    normaliser_of(window, step, self.config),
                    pass_settings(self.config, window.pass_tokens),
                    cache=self.features,
                    backward=self.accelerator.backward,
                    entropy_threshold=window.entropy_threshold,
                ),
            )
        if self.captured.engine is not None:
            window.forget_layer_inputs()
        self.metrics.add_stats(stats)
        self._close_step()
        return loss

    def _window_at(self, micro: MicroStep) -> Window:
        if self._window is None or self._window.window_id != micro.window_id:
            self._window = self._open_window(micro)
        elif self._planned_id != micro.window_id:
            self._plan(self._window)  # a window that a checkpoint brought along
        return self._window

    def _plan(self, window: Window) -> None:
        """What the passes over a window keep, where a GPU's memory bounds it."""
        self._planned_id = window.window_id
        if self.config.training_pass != "group":
            return
        steps = [step_rows(window, step, self.config)
                 for step in range(self.config.optimizer_steps_per_pass)]  # fmt: skip
        plan = self.planner.plan(steps, pass_settings(self.config), self.optimizer)
        if plan is not None:
            window.pass_tokens = plan.pass_tokens
            self.meter.expect(plan.prediction.peak_bytes)

    def _open_window(self, micro: MicroStep) -> Window:
        """Rollout, rewards, advantages; and the log-probabilities that later steps compare with."""
        self.features.clear()
        if self._engine is not None:
            # Anew for each window: others who sample from the model meanwhile keep no pictures.
            self._engine.share_features(self.features)
        assert self.prompts is not None
        with self.meter("data"):
            prompts = self.prompts.window(micro)
        with self.captured.rollout():
            window = self._collector().collect(
                prompts,
                micro.window_id,
                meter=self.meter,
                trainer_state=self.state,
                redraw=self.prompts.redraw(micro) if self.config.dynamic_sampling else None,
            )
        # From here on the memory belongs to training.
        self.backend.standby()
        self._plan(window)
        if self.config.steps_scored_ahead:
            with self.meter("old_logprob"):
                score_old(self.policy, window, self.config, self.features)
        if self.reference is not None:
            with self.meter("ref_logprob"), self.reference():
                every = range(self.config.optimizer_steps_per_pass)
                scores = score_steps(self.policy, window, self.config, self.features, every)
                for row, logprob, _ in scores:
                    row.ref_logprob = logprob
        self._note_window(window)
        return window

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
            never_sampled=frozenset(placeholder_ids(self.policy)),
            max_resample_times=config.max_resample_times,
            solved_from=config.solved_from,
        )

    # -- metrics

    def _note_window(self, window: Window) -> None:
        names = self.reward_caller.names
        self.metrics.add(window_metrics(window, names))
        assert self.prompts is not None
        self.metrics.add(self.prompts.learn(window))
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
        metrics = evaluation_metrics(
            self._collector(evaluation=True),
            lambda some: self._evaluation_prompts(rows, some),
            indices,
            completions_at_once=self.args.per_device_eval_batch_size,
            device=self.args.device,
            trainer_state=self.state,
        )
        self.backend.standby()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        metrics[f"{metric_key_prefix}_num_tokens"] = self.state.num_input_tokens_seen
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(indices))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # -- training, checkpoints, resume

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As ``transformers.Trainer.train``; ``resume_from_checkpoint=True`` takes the last whole
        checkpoint, and a damaged one gives way to the one before it, which is said."""
        self._window = self._planned_id = None
        self._last_micro_step = None
        if self.prompts is not None:
            self.prompts.restart()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def begin_epoch(self, epoch: int) -> None:
        assert isinstance(self.train_dataset, Schedule)
        self.train_dataset.epoch = epoch

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.prompts is not None:
            kept = None if self._window is None or self._window_is_used_up() else self._window
            self.prompts.save(kept, Path(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.prompts is not None:
            self._window = self.prompts.load(Path(checkpoint), self.args.device)

    def _window_is_used_up(self) -> bool:
        last = self._last_micro_step
        assert last is not None
        return (
            last.slot + 1 == self.config.slots and last.iteration + 1 == self.config.num_iterations
        )


class _RolloutFileStart(TrainerCallback):
    """Opens the file of completions when a run begins or is resumed."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.trainer.config.log_completions:
            self.trainer.rollout_file.start(state.global_step)


def _as_list(reward_funcs: Any) -> list[Any]:
    return list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
