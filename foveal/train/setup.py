"""What is checked and put in order before a run begins, while errors are still cheap."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foveal.data import PromptBuilder, RowSource, describe_dropped, load_rows, survey
from foveal.models.family import family_of, stock_model
from foveal.models.load import from_pretrained
from foveal.models.state import say, state_of
from foveal.models.training_stack import TrainingStack
from foveal.rewards.call import RewardCaller
from foveal.train.config import GRPOConfig
from foveal.train.console import console
from foveal.train.run_config import RunConfig

_UNSUPPORTED = {
    "reward_processing_classes": "write the reward model's call as a reward function",
    "quantization_config": "load the model with FastVisionModel.from_pretrained(load_in_4bit=True)",
    "tools": "completions are single turns; leave it None",
    "rollout_func": "give an object with RolloutBackend's generate as rollout_backend",
    "environment_factory": "completions are single turns; leave it None",
}


def refuse_unsupported(**given: Any) -> None:
    """Raise for arguments of TRL's trainer that mean something else, or nothing, here."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is not supported; {_UNSUPPORTED[name]}")


def prepare_arguments(args: Any, model: Any) -> GRPOConfig:
    """A ``GRPOConfig`` from what was given: one of ours, one of TRL's, or nothing."""
    if args is None:
        name = model if isinstance(model, str) else stock_model(model).config.model_type
        return GRPOConfig(output_dir=f"{str(name).rstrip('/').split('/')[-1]}-GRPO")
    if isinstance(args, GRPOConfig):
        config = args
    elif type(args).__name__ == "GRPOConfig":
        config = GRPOConfig.from_trl(args)
    else:
        raise TypeError(
            f"args is a {type(args).__name__}; give a foveal.GRPOConfig (or a trl.GRPOConfig)"
        )
    if config.use_vllm:
        console.print("use_vllm: rollouts come from the built-in backend, which needs no vLLM.")
    choose_optimizer(config)
    return config


def choose_optimizer(config: RunConfig) -> None:
    """Without a GPU, an optimizer that needs none in the place of one that does; says so."""
    optimizer = optimizer_name(config)
    if "8bit" in optimizer and not torch.cuda.is_available():
        console.print(f"No CUDA device: optim={optimizer} is replaced by adamw_torch.")
        config.optim = "adamw_torch"


def optimizer_name(config: RunConfig) -> str:
    # An enum with text values: str() of it would be its Python name.
    return str(getattr(config.optim, "value", config.optim))


def prepare_model(
    model: Any, processing_class: Any, peft_config: Any, config: RunConfig
) -> tuple[Any, Any]:
    """Load a model given by name, find its processor, add an adapter if one is asked for."""
    if isinstance(model, str):
        model, loaded_processor = from_pretrained(model, **(config.model_init_kwargs or {}))
        processing_class = processing_class or loaded_processor
    elif config.model_init_kwargs:
        raise ValueError("model_init_kwargs is for a model given by name; load yours with them")
    family_of(model)  # raises for a model type that is not supported
    if processing_class is None:
        from transformers import AutoProcessor

        name = stock_model(model).config._name_or_path
        if not name:
            raise ValueError("the model was not loaded by name; give its processor, too")
        processing_class = AutoProcessor.from_pretrained(name)
    if not hasattr(processing_class, "image_processor"):
        raise TypeError(
            f"processing_class is a {type(processing_class).__name__}, which reads no pictures; "
            "give the model's processor"
        )
    if peft_config is not None:
        if hasattr(model, "peft_config"):
            raise ValueError("the model already has an adapter; leave peft_config None")
        from peft import get_peft_model

        model = get_peft_model(model, peft_config)
    return model, processing_class


def check_policy(model: nn.Module, config: GRPOConfig) -> None:
    """Refuse what would make log-probabilities wrong, or train nothing."""
    check_trainable(model)
    if config.training_pass == "group":
        TrainingStack(model)  # raises for what it cannot compute
    _check_lengths(model, config)


def check_trainable(model: nn.Module) -> None:
    """Refuse a model of which nothing is trained, or whose log-probabilities would be wrong."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "no parameter of the model is trained; add an adapter with "
            "FastVisionModel.get_peft_model, or set requires_grad"
        )
    for adapter in getattr(model, "peft_config", {}).values():
        dropout = getattr(adapter, "lora_dropout", 0.0)
        if dropout:
            raise ValueError(
                f"lora_dropout is {dropout}; completions share their prompt and must see the same "
                "weights in every pass. Make the adapter with lora_dropout=0"
            )
    if stock_model(model).get_output_embeddings() is not _plain_head(model):
        raise ValueError(
            "the adapter covers lm_head, which log-probabilities are computed from in pieces; "
            "take it out of target_modules"
        )


def _plain_head(model: nn.Module) -> Any:
    head = stock_model(model).get_output_embeddings()
    return head if not hasattr(head, "base_layer") else None


def _check_lengths(model: nn.Module, config: GRPOConfig) -> None:
    longest = state_of(model).max_seq_length
    wanted = (config.max_prompt_length or 0) + config.max_completion_length
    if longest is not None and wanted > longest:
        raise ValueError(
            f"max_prompt_length={config.max_prompt_length} and max_completion_length="
            f"{config.max_completion_length} add up to {wanted} tokens, above the model's "
            f"max_seq_length={longest}; lower them or load the model with a larger one"
        )


def prompt_builder(model: nn.Module, processing_class: Any, config: GRPOConfig) -> PromptBuilder:
    """From rows of the data set to prompts, with the model's own processor."""
    return PromptBuilder(
        processing_class,
        image_token_id=stock_model(model).config.image_token_id,
        max_prompt_length=_prompt_bound(model, config),
        chat_template_kwargs=config.chat_template_kwargs,
        system_prompt=config.system_prompt,
        picture_cache_bytes=config.picture_cache_mib * 2**20,
        answer_coordinates=config.answer_coordinates or family_of(model).FAMILY.answer_coordinates,
    )


def _prompt_bound(model: nn.Module, config: GRPOConfig) -> int | None:
    """The longest prompt: as asked, or what ``max_seq_length`` leaves beside a completion."""
    longest = state_of(model).max_seq_length
    if config.max_prompt_length is not None or longest is None:
        return config.max_prompt_length
    return longest - config.max_completion_length


def dataset_prompts(
    dataset: Any, builder: PromptBuilder, rewards: RewardCaller, role: str
) -> tuple[RowSource, list[int]]:
    """Open a data set, say which prompts are too long, and return the rows to use.

    The first prompt is built at once and its columns are shown to the reward functions, so that
    a set which does not fit the model or the rewards fails here.
    """
    rows = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    if rows.is_streamed:
        raise ValueError(
            f"the {role} set is streamed; load it with streaming=False, because all of its rows "
            "are answered each time"
        )
    kept, dropped = survey(rows, builder)
    if dropped and builder.max_prompt_length is not None:
        say(describe_dropped(dropped, len(rows), builder.max_prompt_length))
    first = builder.build(rows[kept[0]], kept[0])
    rewards.check_columns(first.columns)
    return rows, kept
