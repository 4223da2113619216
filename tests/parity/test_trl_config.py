"""``GRPOConfig`` beside TRL 1.16's: the same names, the same defaults, values carried over."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from foveal import GRPOConfig, GRPOTrainer
from foveal.models.family import language_model
from tests.parity.our_side import COMMON, OurScript, digit_sum, our_model, rows, trained, values
from tests.parity.trl_side import trl

OTHER_DEFAULT = {
    "bf16": "None means True in TRL; here the arithmetic follows the model's weights",
    "logging_nan_inf_filter": "True in TRL: it hides a failing loss, and waits for each of them",
    "num_completions_to_print": "None means all in TRL; the table should fit a screen",
}
OURS_ALONE = {
    "answer_coordinates": "of rows that say what their boxes count in",
    "curriculum": "TRL draws rows evenly",
    "curriculum_band": "of curriculum",
    "curriculum_groups": "of curriculum",
    "curriculum_smoothing": "of curriculum",
    "dynamic_sampling": "DAPO's, which TRL does not have",
    "max_resample_times": "of dynamic_sampling",
    "max_prompt_length": "TRL had it before 1.0; recipes still name it",
    "max_rollout_logprob_difference": "a guard that TRL does not have",
    "picture_cache_mib": "TRL processes pictures each time",
    "pass_tokens": "of the group pass, which packs completions without padding",
    "reference": "TRL chooses by how the adapter was passed",
    "rollout_rows": "TRL generates a whole batch at once",
    "skip_solved_after": "of rows that are measured",
    "skip_unsolved_after": "of rows that are measured",
    "solved_from": "of curriculum",
    "stream_buffer": "TRL takes what datasets streams",
    "system_prompt": "TRL leaves it to the data set",
    "training_pass": "TRL has the plain one",
}
REFUSED = {
    "generation_kwargs": {"num_beams": 2},
    "sync_ref_model": True,
    "use_adaptive_entropy": True,
    "vllm_structured_outputs_regex": "[0-9]+",
}
TRL_ALONE = {
    "cache_implementation": "of transformers' generate",
    "cast_lm_head_to_fp32": "log-probabilities are computed in float32 always",
    "disable_dropout": "dropout is refused",
    "ds3_gather_for_generation": "one GPU",
    "entropy_coef_delta": "of use_adaptive_entropy",
    "entropy_coef_max": "of use_adaptive_entropy",
    "entropy_coef_min": "of use_adaptive_entropy",
    "entropy_target": "of use_adaptive_entropy",
    "log_completions_hub_repo": "completions stay in the run folder",
    "log_multimodal": "pictures lie beside rollouts.jsonl always",
    "log_unique_prompts": "a prompt is stored once always",
    "max_tool_calling_iterations": "tools are refused by the trainer",
    "pad_to_multiple_of": "for devices other than GPUs",
    "ref_model_mixup_alpha": "of sync_ref_model",
    "ref_model_sync_steps": "of sync_ref_model",
    "router_aux_loss_coef": "no family here is a mixture of experts",
    "transformers_continuous_batching_config": "TRL refuses it for vision-language models",
    "trust_remote_code": "stock classes only",
    "use_transformers_continuous_batching": "TRL refuses it for vision-language models",
    "use_transformers_paged": "the former's old name",
    "vllm_group_port": "of vLLM's server",
    "vllm_importance_sampling_cap": "old name of ..._clip_max, which TRL has filled in",
    "vllm_model_impl": "of vLLM",
    "vllm_server_base_url": "of vLLM's server",
    "vllm_server_host": "of vLLM's server",
    "vllm_server_port": "of vLLM's server",
    "vllm_server_timeout": "of vLLM's server",
}
OTHER_VALUES: dict[str, Any] = {
    "beta": 0.1,
    "chat_template_kwargs": {"enable_thinking": False},
    "delta": 1.5,
    "entropy_coef": 0.01,
    "epsilon": 0.1,
    "epsilon_high": 0.3,
    "importance_sampling_level": "sequence",
    "learning_rate": 3e-6,
    "log_completions": True,
    "logging_steps": 3,
    "loss_type": "dr_grpo",
    "mask_truncated_completions": True,
    "max_completion_length": 100,
    "min_p": 0.1,
    "model_init_kwargs": {"dtype": "float32"},
    "multi_objective_aggregation": "normalize_then_sum",
    "num_completions_to_print": 5,
    "num_generations": 4,
    "num_generations_eval": 2,
    "num_iterations": 2,
    "off_policy_mask_threshold": 0.5,
    "remove_unused_columns": True,
    "repetition_penalty": 1.1,
    "reward_weights": [1.0, 0.5],
    "sapo_temperature_neg": 1.5,
    "sapo_temperature_pos": 1.25,
    "scale_rewards": "batch",
    "shuffle_dataset": False,
    "steps_per_generation": 6,
    "temperature": 0.7,
    "top_entropy_quantile": 0.5,
    "top_k": 20,
    "top_p": 0.9,
    "use_bias_correction_kl": False,
    "use_vllm": True,
    "vespo_k_neg": 1.0,
    "vespo_k_pos": 1.5,
    "vespo_lambda_neg": 2.5,
    "vespo_lambda_pos": 3.5,
    "vllm_enable_sleep_mode": True,
    "vllm_gpu_memory_utilization": 0.5,
    "vllm_importance_sampling_clip_max": 2.0,
    "vllm_importance_sampling_clip_min": 0.5,
    "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_max_model_length": 4096,
    "vllm_mode": "server",
    "vllm_tensor_parallel_size": 2,
}
"""Another value than the default for every field of TRL's own that is ours too."""
OF_TRANSFORMERS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "optim": "sgd",
    "max_steps": 7,
    "seed": 1,
    "max_grad_norm": 0.5,
    "warmup_steps": 2,
    "lr_scheduler_type": "constant_with_warmup",
    "save_strategy": "no",
}


def defaults(config: type) -> dict[str, Any]:
    found = {}
    for f in dataclasses.fields(config):
        if f.default_factory is not dataclasses.MISSING:
            found[f.name] = f.default_factory()
        elif f.init and f.default is not dataclasses.MISSING:
            found[f.name] = f.default
    return found


THEIRS, OURS = defaults(trl.GRPOConfig), defaults(GRPOConfig)


def test_shared_fields_have_trls_defaults():
    differing = {name for name in THEIRS.keys() & OURS.keys() if THEIRS[name] != OURS[name]}
    assert differing == OTHER_DEFAULT.keys()


def test_every_field_of_one_side_alone_has_its_reason():
    assert THEIRS.keys() - OURS.keys() == TRL_ALONE.keys() | REFUSED.keys()
    assert OURS.keys() - THEIRS.keys() == OURS_ALONE.keys()


def test_from_trl_carries_every_value_over(tmp_path):
    of_transformers = defaults(TrainingArguments)
    changed = {
        name
        for name in THEIRS.keys() & OURS.keys()
        if name not in of_transformers or of_transformers[name] != THEIRS[name]
    }
    # Tested below, because transformers gives them a meaning of its own.
    changed -= {"gradient_checkpointing", "bf16", "generation_batch_size"}
    assert changed == OTHER_VALUES.keys()
    given = {**OTHER_VALUES, **OF_TRANSFORMERS}
    assert not [name for name, value in given.items() if value == OURS[name]]

    theirs = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **given)
    ours = GRPOConfig.from_trl(theirs)
    assert {name: getattr(ours, name) for name in given} == given
    assert ours.output_dir == str(tmp_path) and ours.use_cpu


def test_from_trl_takes_the_size_of_a_rollout_however_it_was_given(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    sizes = [
        {},
        {"generation_batch_size": 64},
        {"steps_per_generation": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    ]
    for size in sizes:
        size = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, **size}
        theirs = trl.GRPOConfig(**common, **size)
        ours = GRPOConfig.from_trl(theirs)
        assert ours.generation_batch_size == theirs.generation_batch_size
        step = theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps
        assert ours.per_device_train_batch_size * ours.gradient_accumulation_steps == step
        assert ours.pass_rows == theirs.per_device_train_batch_size
        direct = GRPOConfig(**common, **size)
        assert direct.generation_batch_size == ours.generation_batch_size


@pytest.mark.parametrize("scale", [True, False, "batch"])
def test_scale_rewards_is_read_as_trl_reads_it(tmp_path, scale):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    theirs = trl.GRPOConfig(scale_rewards=scale, **common)
    assert GRPOConfig(scale_rewards=scale, **common).scale_rewards == theirs.scale_rewards
    assert GRPOConfig.from_trl(theirs).scale_rewards == theirs.scale_rewards


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_train_something_else_is_refused(tmp_path, name):
    config = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: REFUSED[name]}
    )
    with pytest.raises(ValueError, match=f"{name}=.* no counterpart here"):
        GRPOConfig.from_trl(config)


def test_trls_checkpointing_does_not_switch_on_transformers_own(tmp_path):
    """It is TRL's default; transformers' switch would mark the frozen tower as well, and hook the
    embeddings so that gradients reach them for nothing."""
    model, processor = our_model("qwen2_5_vl", vision=False)
    model.foveal.checkpointing = None
    given = {**COMMON, "output_dir": str(tmp_path), "max_steps": 1, "learning_rate": 0.01}
    del given["gradient_checkpointing"]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=digit_sum,
        args=trl.GRPOConfig(**given),
        train_dataset=rows(),
        processing_class=processor,
        rollout_backend=OurScript(processor.tokenizer),
    )
    before = values(model)
    trainer.train()
    assert all((p != before[name]).any() for name, p in trained(model).items())
    marked = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert marked == list(language_model(model).layers)
    embeddings = model.get_input_embeddings()
    assert not embeddings(torch.tensor([1])).requires_grad


def test_the_newer_name_of_gradient_checkpointing_is_read_too(tmp_path):
    if not hasattr(TrainingArguments, "activation_checkpointing"):
        pytest.skip("this transformers has the old name only")
    common = {"output_dir": str(tmp_path), "use_cpu": True}
    for given, expected in [
        ({}, True),
        ({"activation_checkpointing": False}, False),
        ({"activation_checkpointing": True, "gradient_checkpointing": False}, True),
        ({"activation_checkpointing": True, "gradient_checkpointing": "offload"}, "offload"),
    ]:
        config = GRPOConfig(**common, **given)
        assert config.gradient_checkpointing == expected
        assert not config.activation_checkpointing, "transformers' own switch stays off"
