"""``SFTTrainer``: supervised training on completions, for the start before rewards.

    rows, read ahead by workers                      train.sft_data
    each micro-step
        pictures, prompts, completions packed        train.sft_pass
        - log p(completion tokens) / tokens of the optimizer step, backward
    each optimizer step
        transformers: clip, step (over float32 masters), schedule, log, save, evaluate

The loss is the mean over all completion tokens of an optimizer step, however its rows are split.
Weights are computed with as they are loaded: bfloat16 on a GPU that knows it, with float32 masters
in the optimizer (``foveal.train.masters``), so that rollouts afterwards see what was trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import speed_metrics

from foveal.data import RowSource
from foveal.models.family import stock_model
from foveal.models.precision import HALF_TYPES, evaluating
from foveal.models.state import say
from foveal.rewards.call import RewardCaller
from foveal.rl.stats import Sum
from foveal.rollout import engine_of
from foveal.train.console import RunProgress
from foveal.train.run import Run
from foveal.train.setup import prepare_model
from foveal.train.sft_config import SFTConfig
from foveal.train.sft_data import Batch, Examples, RowOrder, cores_for_workers, loader
from foveal.train.sft_pass import learn, total_loss
from foveal.train.sft_setup import (
    check_model,
    dataset_examples,
    example_reader,
    make_adamw,
    parameter_groups,
    prepare_arguments,
)
from foveal.train.step_flow import StepFlow
from foveal.train.window import reward_groups
from foveal.types import SamplingParams

RewardFunc = str | Callable[..., Any]


class SFTTrainer(Run):
    """Trains a vision-language model to write given completions.

    Args:
        model: from ``FastVisionModel``, any supported transformers or PEFT model, or a name. What
            asks for a gradient is trained: an adapter, or all weights of a model without one.
        args: an ``SFTConfig``.
        train_dataset: anything that ``foveal.data.load_rows`` opens, in every row format of the
            reinforcement trainer, with completions as ``foveal.data.target_text`` finds them.
        eval_dataset: the same, for evaluation during training.
        processing_class: the model's processor; found by the model's name if None.
        reward_funcs: what judges the answers of ``SFTConfig.eval_answers``; the first one counts
            as ``eval_accuracy``.
        callbacks, optimizers: as in ``transformers.Trainer``.
        peft_config: adapter to add to a model that has none.

    Raises:
        ValueError: for arguments or rows that cannot be trained on, before anything is computed.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_funcs: RewardFunc | list[Any] = "exact_answer",
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        config = prepare_arguments(args, model)
        model, processing_class = prepare_model(model, processing_class, peft_config, config)
        check_model(model)
        self.config: SFTConfig = config
        self.reader = example_reader(model, processing_class, config)
        self.judge = RewardCaller(reward_funcs)
        self.eval_examples = self._evaluation_examples(eval_dataset)
        super().__init__(
            model=model,
            args=config,
            train_dataset=self._training_examples(train_dataset),
            eval_dataset=self.eval_examples,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.policy: nn.Module = model
        """The model, adapted or not: what is trained."""
        self.flow = StepFlow(self.args.device)
        self.order: RowOrder | None = None
        self._epoch = self._micro_steps = 0
        self.settle_checkpointing()
        if self.config.gradient_checkpointing == "captured":
            say('gradient_checkpointing="captured" is True here: there is no rollout')
        self.add_run_callbacks(RunProgress(self.metrics, "loss"))

    # -- data

    def _training_examples(self, dataset: Any) -> Examples | None:
        return None if dataset is None else dataset_examples(dataset, self.reader, "training")

    def _evaluation_examples(self, dataset: Any) -> Examples | None:
        if dataset is None:
            return None
        examples = dataset_examples(dataset, self.reader, "evaluation")
        if self.config.eval_answers:
            self.judge.check_columns(examples.rows[examples.indices[0]].columns)
        return examples

    def get_train_dataloader(self) -> Any:
        if self.train_dataset is None:
            raise ValueError("SFTTrainer has no train_dataset; give one to train")
        assert isinstance(self.train_dataset, Examples)
        config = self.config
        self.order = RowOrder(
            len(self.train_dataset),
            config.per_device_train_batch_size,
            shuffle=config.shuffle_dataset,
            seed=config.seed if config.data_seed is None else config.data_seed,
            drop_last=config.dataloader_drop_last,
        )
        self.order.epoch = self._epoch
        return self._loader(self.train_dataset, self.order)

    def _loader(self, examples: Examples, order: RowOrder) -> Any:
        dtype = stock_model(self.policy).dtype
        return loader(
            examples,
            order,
            dtype=dtype if dtype in HALF_TYPES else torch.float32,
            workers=self.args.dataloader_num_workers,
            prefetch=self.args.dataloader_prefetch_factor,
            persistent=self.args.dataloader_persistent_workers,
        )

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if self.order is not None:
            self.order.epoch = epoch

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The micro-steps of an optimizer step; what it waits for them is ``time/data``."""
        with self.flow("data"):
            batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_steps = len(batches)
        return batches, tokens

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> int:
        return sum(batch.completion_tokens for batch in batch_samples)

    # -- the step

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with the run's parameter groups and masters, or what else ``optim`` names."""
        trained: Any = self.policy if model is None else model
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        ours = kind is torch.optim.AdamW or self.config.vision_learning_rate is not None
        if self.optimizer is None and ours:
            decayed = self.get_decay_parameter_names(trained)
            groups = parameter_groups(trained, self.config, decayed)
            self.optimizer = make_adamw(kind, options, groups, self.config)
        return super().create_optimizer(model)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one micro-step's rows."""
        batch: Batch = inputs.to(self.args.device)
        model.train()
        with self.flow("train"):
            loss, stats = learn(
                model,
                batch.examples(),
                int(num_items_in_batch),
                tokens_at_once=self.config.pass_tokens,
                backward=self.accelerator.backward,
            )
        self.metrics.add_stats({**stats, "loss": Sum(loss), "completion_tokens": _sum(batch, loss)})
        self.state.num_input_tokens_seen += batch.tokens
        self._micro_steps -= 1
        if self._micro_steps == 0:
            # What comes back is of the step before: asking for this one's numbers would leave the
            # GPU without work until the next is launched.
            self._report(self.flow.close(self.metrics.take_stats()))
        return loss

    def _report(self, steps: Sequence[dict[str, float]]) -> None:
        for values in steps:
            seconds = sum(spent for name, spent in values.items() if name.startswith("time/"))
            speed = values["completion_tokens"] / max(seconds, 1e-9)
            self.metrics.add({**values, "step_time": seconds, "tokens_per_second/train": speed})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ``Run.log``, with every step so far in it."""
        self._report(self.flow.finish())
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As ``Run.train``; cores are left to the workers that read rows."""
        with cores_for_workers(self.args.device, self.args.dataloader_num_workers):
            return super().train(resume_from_checkpoint, **kwargs)

    # -- evaluation

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss on every evaluation row, and the rewards of ``eval_answers`` greedy answers."""
        examples = self.eval_examples
        if eval_dataset is not None and eval_dataset is not self.eval_examples:
            examples = self._evaluation_examples(eval_dataset)
        if examples is None:
            raise ValueError("SFTTrainer has no eval_dataset; give one to evaluate")
        started = time.time()
        metrics = {"loss": self._mean_loss(examples), **self._answer_rewards(examples)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        metrics |= speed_metrics(metric_key_prefix, started, num_samples=len(examples))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _mean_loss(self, examples: Examples) -> float:
        size = self.args.per_device_eval_batch_size
        total, tokens = 0.0, 0
        with evaluating(self.policy):
            for batch in self._loader(
                examples, RowOrder(len(examples), size, shuffle=False, seed=0)
            ):
                part, count = total_loss(
                    self.policy,
                    batch.to(self.args.device).examples(),
                    tokens_at_once=self.config.pass_tokens,
                )
                total, tokens = total + part, tokens + count
        return total / tokens

    def _answer_rewards(self, examples: Examples) -> dict[str, float]:
        """Mean rewards of greedy answers to the first rows; nothing if none are asked for."""
        judged = list(self._judged_answers(examples.rows, self._answered(examples)))
        if not judged:
            return {}
        means = torch.tensor(judged).nanmean(0).tolist()
        named = {
            f"rewards/{name}/mean": mean for name, mean in zip(self.judge.names, means, strict=True)
        }
        return {"accuracy": means[0], **named}

    def _answered(self, examples: Examples) -> list[int]:
        return examples.indices[: self.config.eval_answers]

    def _judged_answers(self, rows: RowSource, indices: Sequence[int]) -> Iterator[list[float]]:
        if not indices:
            return
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        engine = engine_of(self.policy, tokenizer)
        sampling = SamplingParams(max_tokens=self.config.eval_max_tokens, temperature=0.0)
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(indices), size):
            here = indices[start : start + size]
            prompts = [self.reader.builder.build(rows[index], index) for index in here]
            groups = engine.generate(prompts, 1, sampling)
            yield from reward_groups(self.judge, groups, self.state).rewards_BF
        engine.standby()


def _sum(batch: Batch, like: Tensor) -> Sum:
    return Sum(torch.full((), float(batch.completion_tokens), device=like.device))
