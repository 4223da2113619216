"""``GRPOConfig``: TRL's names and defaults where it has the field, on transformers' arguments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from foveal.coordinates import SPACES
from foveal.data.difficulty import CurriculumSettings
from foveal.rl import LossSpec
from foveal.rl.advantages import AGGREGATIONS, SCALES
from foveal.rl.ratios import MISMATCH_MODES
from foveal.train.run_config import RunConfig
from foveal.types import SamplingParams

_NOT_OURS = (
    "generation_kwargs",
    "sync_ref_model",
    "use_adaptive_entropy",
    "vllm_structured_outputs_regex",
)


@dataclass(kw_only=True)
class GRPOConfig(RunConfig):
    """Settings of a GRPO or GSPO run.

    Everything of ``transformers.TrainingArguments`` is here too: optimizer, schedule, reports,
    checkpoints. ``per_device_train_batch_size`` counts completions of one micro-step, and
    ``per_device_train_batch_size x gradient_accumulation_steps`` the completions of an optimizer
    step, a whole number of groups.
    """

    # -- defaults of TrainingArguments that differ, as in TRL
    learning_rate: float = field(default=1e-6)
    logging_steps: float = field(default=10)
    gradient_checkpointing: Any = field(default=True)
    """True, False, "selective" (only what is cheap is computed twice; in the plain pass as True),
    "offload" (layer inputs wait in host memory), "captured" (those of completions come from the
    rollout: ``foveal.train.captured``), or "auto": before each rollout's passes the
    fastest of the first four that fits the GPU's free memory, with smaller pieces where none does
    (``foveal.memory.planner``); as True without a GPU and in the plain pass. A choice made in
    ``get_peft_model`` wins. True as in TRL: a run takes no more memory than it was known to."""

    # -- data
    max_prompt_length: int | None = None
    """Longer prompts are dropped, counted and listed; none is cut. None keeps all."""
    num_generations: int = 8
    """G: completions of each prompt."""
    num_generations_eval: int | None = None
    """The same in evaluation; ``num_generations`` if None."""
    max_completion_length: int = 512
    """Tokens a completion may have, and dr_grpo's constant."""
    generation_batch_size: int | None = None
    """Completions of one rollout. Give this or ``steps_per_generation``."""
    steps_per_generation: int | None = None
    """Micro-steps that one rollout serves; ``gradient_accumulation_steps`` if None."""
    num_iterations: int = 1
    """Optimizer passes over each rollout (mu of the GRPO paper, algorithm 1)."""
    shuffle_dataset: bool = True
    system_prompt: str | None = None
    """Put before every conversation that has no system message."""
    chat_template_kwargs: dict[str, Any] | None = None
    answer_coordinates: str | None = None
    """What the model's boxes and points count in, for rows with a column ``coordinates``:
    "original", "resized", "0-1000" or "0-1" (``foveal.coordinates``). None takes what its family
    was taught: the resized picture's pixels for Qwen2.5-VL, else 0-1000."""

    picture_cache_mib: int = 512
    """Host memory in MiB for processed pictures that may come again; 0 keeps none."""
    stream_buffer: int = 256
    """Rows of a streamed set that are held at once, and shuffled with each other."""

    # -- curriculum: what is drawn follows the pass rates measured while training
    curriculum: Literal["off", "pass_rate"] = "off"
    """"pass_rate": tasks become harder or easier so that pass rates stay within
    ``curriculum_band``, and rows of numbered sets are drawn by p (1 - p), untried ones first."""
    curriculum_band: list[float] = field(default_factory=lambda: [0.3, 0.7])
    """Mean pass rates below the first make a task easier, above the second harder."""
    curriculum_smoothing: float = 0.8
    """What the mean keeps of its past with each group."""
    curriculum_groups: int = 4
    """Groups of one difficulty before it changes again."""
    solved_from: float = 1.0
    """From which value of the first reward a completion counts as solved."""
    skip_solved_after: int | None = None
    """Rows all of whose completions were right so many times in a row are not drawn again."""
    skip_unsolved_after: int | None = None
    """The same for rows none of whose completions was right."""

    # -- sampling
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    rollout_rows: int | None = None
    """Completions decoded at once; all of a rollout, up to 128, if None. Lower it to save memory:
    the others wait their turn."""
    dynamic_sampling: bool = False
    """Draw other prompts for groups whose rewards have no spread (DAPO, arXiv:2503.14476)."""
    max_resample_times: int = 3
    """How often the groups of one rollout are drawn anew at most."""

    # -- loss
    beta: float = 0.0
    """Weight of the KL divergence to the reference."""
    reference: Literal["auto", "off", "start"] = "auto"
    """The reference policy: the adapter switched off, or as it was at the start. "auto" takes
    the start where the adapter already does something (a supervised warm-up, say)."""
    use_bias_correction_kl: bool = True
    loss_type: str = "dapo"
    """grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo or vespo."""
    importance_sampling_level: str = "token"
    """"token", or "sequence" for GSPO (arXiv:2507.18071)."""
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    mask_truncated_completions: bool = False
    """Leave completions that were cut at ``max_completion_length`` out of the loss."""
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    off_policy_mask_threshold: float | None = None

    # -- the training pass
    training_pass: Literal["group", "plain"] = "group"
    """"group" computes each prompt once for all its completions; "plain" lays every completion
    out as a row with its prompt: slower, and the specification of the former."""
    pass_tokens: int | None = None
    """Completion tokens that one forward and backward of the group pass holds at most; a longer
    completion goes alone. None: ``per_device_train_batch_size`` rows, whatever their length."""

    # -- rewards
    reward_weights: list[float] | None = None
    scale_rewards: Any = "group"
    """"group", "batch" or "none"; True and False are read as "group" and "none"."""
    multi_objective_aggregation: str = "sum_then_normalize"

    # -- rollout against trainer
    vllm_importance_sampling_correction: bool = True
    """Weigh tokens by trainer / rollout probability, wherever the rollout's are known."""
    vllm_importance_sampling_mode: str = "sequence_mask"
    vllm_importance_sampling_clip_max: float | None = 3.0
    vllm_importance_sampling_clip_min: float | None = None
    max_rollout_logprob_difference: float | None = 1.0
    """Stop with an error if trainer and rollout differ by more than this many nats a token on
    average: then the two do not compute the same policy. None never stops."""

    # -- logs
    log_completions: bool = False
    """Print a few completions and write all to ``rollouts.jsonl`` with the pictures beside it."""
    num_completions_to_print: int | None = 3

    # -- read and accepted; the built-in rollout needs none of them
    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_gpu_memory_utilization: float = 0.3
    vllm_enable_sleep_mode: bool = False
    vllm_max_model_length: int | None = None
    vllm_tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_rewards in (True, False):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        self._check()
        self._arrange_batch()
        self.loss_spec()
        self.sampling_params()
        self.curriculum_settings()

    def _check(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations is {self.num_generations}; a group needs at least 2 completions, "
                "because an advantage compares a completion with the others"
            )
        if self.picture_cache_mib < 0:
            raise ValueError(f"picture_cache_mib is {self.picture_cache_mib}; 0 keeps none")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations is {self.num_iterations}; it must be at least 1")
        for name in (
            "max_prompt_length",
            "num_generations_eval",
            "rollout_rows",
            "pass_tokens",
            "stream_buffer",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give a positive number, or None")
        self._check_choices()

    def _check_choices(self) -> None:
        choices = {
            "scale_rewards": SCALES,
            "multi_objective_aggregation": AGGREGATIONS,
            "reference": ("auto", "off", "start"),
            "vllm_importance_sampling_mode": MISMATCH_MODES,
            "training_pass": ("group", "plain"),
            "curriculum": ("off", "pass_rate"),
            "answer_coordinates": (None, *SPACES),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}"
                )

    def _arrange_batch(self) -> None:
        """Find out how many groups a micro-step, an optimizer step and a rollout hold."""
        batch, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        group, step_rows = self.num_generations, batch * accumulation
        if step_rows % group:
            raise ValueError(
                f"an optimizer step holds {batch} (per_device_train_batch_size) x {accumulation} "
                f"(gradient_accumulation_steps) = {step_rows} completions, no multiple of "
                f"num_generations={group}; set gradient_accumulation_steps="
                f"{_smallest_factor(batch, group)} or per_device_train_batch_size={group}"
            )
        if self.generation_batch_size is not None and self.steps_per_generation is not None:
            raise ValueError("give generation_batch_size or steps_per_generation, not both")
        rollout_rows = self._rollout_rows(batch, step_rows)
        self.pass_rows = batch
        """Rows of one forward and backward pass; what ``per_device_train_batch_size`` was."""
        if batch % group:
            # Groups stay whole: fewer, larger micro-steps, each passed in pieces of pass_rows.
            self.per_device_train_batch_size = group
            self.gradient_accumulation_steps = step_rows // group
        self.steps_per_generation = rollout_rows // self.per_device_train_batch_size
        self.generation_batch_size = rollout_rows

    def _rollout_rows(self, batch: int, step_rows: int) -> int:
        if self.generation_batch_size is not None:
            rows, name = self.generation_batch_size, "generation_batch_size"
        elif self.steps_per_generation is not None:
            rows, name = self.steps_per_generation * batch, "steps_per_generation"
        else:
            return step_rows
        if rows < 1 or rows % step_rows:
            raise ValueError(
                f"{name} asks for {rows} completions a rollout, no multiple of the {step_rows} of "
                "an optimizer step; raise or lower it to a whole number of optimizer steps"
            )
        return rows

    @property
    def rows_at_once(self) -> int:
        """Completions that the engine decodes at a time."""
        if self.rollout_rows is not None:
            return self.rollout_rows
        assert self.generation_batch_size is not None
        return min(128, max(self.generation_batch_size, self.per_device_eval_batch_size))

    @property
    def prompts_per_micro_step(self) -> int:
        return self.per_device_train_batch_size // self.num_generations

    @property
    def slots(self) -> int:
        """Micro-steps that share one rollout."""
        assert self.steps_per_generation is not None
        return self.steps_per_generation

    @property
    def optimizer_steps_per_pass(self) -> int:
        """Optimizer steps that one pass over a rollout makes."""
        return self.slots // self.gradient_accumulation_steps

    @property
    def steps_scored_ahead(self) -> range:
        """Optimizer steps of a rollout, counted from 0, that need a pass of their own before any
        training: for entropies all, for old log-probabilities those before which weights change.

        The first one trains the weights of the rollout, so its own pass has the old ones.
        """
        return range(1 if self.top_entropy_quantile >= 1 else 0, self.optimizer_steps_per_pass)

    def loss_spec(self) -> LossSpec:
        """The loss as ``foveal.rl`` takes it."""
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return LossSpec(
            loss_type=self.loss_type,
            importance_level=self.importance_sampling_level,
            epsilon_low=self.epsilon,
            epsilon_high=high,
            delta=self.delta,
            beta=self.beta,
            bias_corrected_kl=self.use_bias_correction_kl,
            sapo_temperature_pos=self.sapo_temperature_pos,
            sapo_temperature_neg=self.sapo_temperature_neg,
            vespo_k_pos=self.vespo_k_pos,
            vespo_lambda_pos=self.vespo_lambda_pos,
            vespo_k_neg=self.vespo_k_neg,
            vespo_lambda_neg=self.vespo_lambda_neg,
            max_completion_length=self.max_completion_length,
            off_policy_mask_threshold=self.off_policy_mask_threshold,
            entropy_coef=self.entropy_coef,
            top_entropy_quantile=self.top_entropy_quantile,
        )

    def curriculum_settings(self) -> CurriculumSettings:
        """How pass rates steer what is drawn."""
        if len(self.curriculum_band) != 2:
            raise ValueError(
                f"curriculum_band is {self.curriculum_band}; give two pass rates such as [0.3, 0.7]"
            )
        low, high = self.curriculum_band
        return CurriculumSettings(
            is_on=self.curriculum == "pass_rate",
            band=(low, high),
            smoothing=self.curriculum_smoothing,
            groups=self.curriculum_groups,
            skip_solved_after=self.skip_solved_after,
            skip_unsolved_after=self.skip_unsolved_after,
        )

    def sampling_params(self, seed: int | None = None) -> SamplingParams:
        """How rollouts are drawn."""
        if self.temperature == 0:
            raise ValueError("temperature is 0: every completion of a group would be the same")
        return SamplingParams(
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
        )

    @classmethod
    def from_trl(cls, config: Any) -> GRPOConfig:
        """Take over every field that ``trl.GRPOConfig`` shares with this one.

        Raises:
            ValueError: for a setting that would train something else and has no counterpart.
        """
        for name in _NOT_OURS:
            if value := getattr(config, name, None):
                raise ValueError(
                    f"trl.GRPOConfig has {name}={value!r}, which has no counterpart here; leave "
                    "it at TRL's default"
                )
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        shared = {
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(config)
            if f.init and f.name in known
        }
        # TRL fills one in from the other; both together would contradict each other here.
        shared["generation_batch_size"] = None
        return cls(**shared)


def _smallest_factor(batch: int, group: int) -> int:
    """The smallest k with ``batch * k`` a multiple of ``group``."""
    return next(k for k in range(1, group + 1) if batch * k % group == 0)
