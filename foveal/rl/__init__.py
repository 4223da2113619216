"""The mathematics of the update: rewards to advantages, log-probabilities to a loss.

Pure functions of tensors; no model, no configuration object, no state. Everything the trainer does
between scoring a rollout and calling ``backward``:

    spec = LossSpec(loss_type="grpo", importance_level="sequence", epsilon_low=3e-4,
                    epsilon_high=4e-4)                                              # GSPO
    result = advantages_from_rewards(reward_PGF, weights)          # result.zero_std_P: skip these
    normaliser = step_normaliser(spec, lengths_of_all_rows_of_the_step)
    stats = {}
    for rows in micro_batches:                                     # any split, the same gradient
        output = policy_loss(spec, policy_logprob_BT=..., advantage_B=..., mask_BT=...,
                             normaliser=normaliser, old_logprob_BT=...)
        output.loss.backward()
        stats = merge_stats(stats, output.stats)
    metrics = stat_values(stats)                                   # TRL's metric names

Where to look: ``advantages`` rewards against their group; ``spec`` what a loss is made of, which
loss types exist and what each divides by; ``losses`` the formulas; ``ratios`` policy against
policy; ``entropy`` the choice of tokens and the bonus; ``stats`` numbers that add up over
micro-batches.
"""

from foveal.rl.advantages import (
    Advantages,
    advantages_from_rewards,
    aggregate,
    group_advantages,
    nan_std,
)
from foveal.rl.entropy import EntropyControl, entropy_mask, entropy_threshold
from foveal.rl.losses import PER_TOKEN, LossOutput, policy_loss
from foveal.rl.ratios import (
    MISMATCH_MODES,
    kl_k3,
    log_ratio,
    logprob_difference,
    mismatch_weight,
    off_policy_mask,
)
from foveal.rl.spec import AGGREGATION, LossSpec, Normaliser, step_normaliser
from foveal.rl.stats import Max, Mean, Min, Stat, Sum, merge_stats, stat_values

__all__ = [
    "Advantages",
    "advantages_from_rewards",
    "group_advantages",
    "aggregate",
    "nan_std",
    "LossSpec",
    "AGGREGATION",
    "Normaliser",
    "step_normaliser",
    "PER_TOKEN",
    "policy_loss",
    "LossOutput",
    "log_ratio",
    "kl_k3",
    "MISMATCH_MODES",
    "mismatch_weight",
    "logprob_difference",
    "off_policy_mask",
    "entropy_threshold",
    "entropy_mask",
    "EntropyControl",
    "Mean",
    "Sum",
    "Min",
    "Max",
    "Stat",
    "merge_stats",
    "stat_values",
]
