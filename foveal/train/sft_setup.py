"""What is checked and put in order before a supervised run begins, while errors are still cheap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.progress import track
from torch import nn

from foveal.data import PromptBuilder, RowSource, describe_dropped, load_rows, survey, turn_end
from foveal.data.lengths import MANY_ROWS
from foveal.models.family import stock_model, vision_modules
from foveal.models.state import say, state_of
from foveal.models.training_stack import TrainingStack
from foveal.train.masters import MasterAdamW
from foveal.train.setup import check_trainable, choose_optimizer
from foveal.train.sft_config import SFTConfig
from foveal.train.sft_data import ExampleReader, Examples


def prepare_arguments(args: Any, model: Any) -> SFTConfig:
    """An ``SFTConfig`` from what was given: one of ours, or nothing."""
    if args is None:
        name = model if isinstance(model, str) else stock_model(model).config.model_type
        return SFTConfig(output_dir=f"{str(name).rstrip('/').split('/')[-1]}-SFT")
    if not isinstance(args, SFTConfig):
        raise TypeError(f"args is a {type(args).__name__}; give a foveal.SFTConfig")
    choose_optimizer(args)
    return args


def check_model(model: nn.Module) -> None:
    """Refuse a model that cannot be trained so, or of which nothing is.

    Raises:
        ValueError: says what is wrong with it.
    """
    check_trainable(model)
    TrainingStack(model)  # raises for what it cannot compute
    coarse = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype.itemsize < 2]
    half = [n for n, p in model.named_parameters() if _is_trained_in(p, torch.float16)]
    if coarse or half:
        raise ValueError(
            f"{(coarse or half)[0]} is trained in {'8 bits' if coarse else 'float16'}, in which "
            "small gradients vanish; load the model with dtype='bfloat16' or 'float32', or train "
            "an adapter on it (FastVisionModel.get_peft_model)"
        )


def _is_trained_in(parameter: nn.Parameter, dtype: torch.dtype) -> bool:
    return parameter.requires_grad and parameter.dtype == dtype


def example_reader(model: nn.Module, processing_class: Any, config: SFTConfig) -> ExampleReader:
    """From rows to examples, with the model's own processor.

    Raises:
        ValueError: the template closes a turn with a token at which rollouts would not stop.
    """
    stock = stock_model(model)
    builder = PromptBuilder(
        processing_class,
        image_token_id=stock.config.image_token_id,
        max_prompt_length=config.max_prompt_length,
        chat_template_kwargs=config.chat_template_kwargs,
        system_prompt=config.system_prompt,
    )
    end_id = turn_end(processing_class, config.chat_template_kwargs)
    stops = stock.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if end_id not in stops:
        token = processing_class.tokenizer.convert_ids_to_tokens(end_id)
        raise ValueError(
            f"the chat template ends a turn with {token!r} ({end_id}), and the model stops at "
            f"{stops}: it would learn to stop and go on all the same. Put {end_id} into "
            "model.generation_config.eos_token_id"
        )
    return ExampleReader(
        builder,
        end_id,
        template=config.completion_template,
        max_completion_length=config.max_completion_length,
        max_tokens=state_of(model).max_seq_length,
    )


def dataset_examples(dataset: Any, reader: ExampleReader, role: str) -> Examples:
    """Open a data set, check all completions that are there already, and drop long prompts.

    Rows that are drawn as they are asked for are not read ahead, but for the first. Of all others
    the texts are read once, so that a row without a completion fails here and not hours later;
    pictures are only where ``max_prompt_length`` counts their tokens.
    """
    rows = dataset if isinstance(dataset, RowSource) else load_rows(dataset)
    if rows.is_streamed:
        raise ValueError(
            f"the {role} set is streamed; load it with streaming=False, because the order of rows "
            "must be known to resume a run"
        )
    _check_completions(rows, reader)
    kept, dropped = survey(rows, reader.builder)
    if dropped and reader.builder.max_prompt_length is not None:
        say(describe_dropped(dropped, len(rows), reader.builder.max_prompt_length))
    reader.read(rows, kept[0])
    return Examples(rows, kept, reader)


def _check_completions(rows: RowSource, reader: ExampleReader) -> None:
    ready = [i for i in range(len(rows)) if not rows.is_drawn(i)]
    for index in track(ready, "reading completions", disable=len(ready) < MANY_ROWS):
        row = rows.rows[index]
        if isinstance(row, Mapping):  # anything else is refused when the row is read
            reader.completion(row, index)


def parameter_groups(
    model: nn.Module, config: SFTConfig, decayed: list[str]
) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and weight decay; empty groups left out.

    Args:
        decayed: names of the parameters that weight decay acts on.
    """
    tower = {id(p) for module in vision_modules(model) for p in module.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) in tower, name in decayed)
            groups.setdefault(key, []).append(parameter)
    rates = {False: {}, True: {"lr": config.vision_learning_rate}}
    if config.vision_learning_rate is None:
        rates[True] = {}
    return [
        {"params": found, "weight_decay": config.weight_decay if decays else 0.0, **rates[seeing]}
        for (seeing, decays), found in groups.items()
    ]


def make_adamw(kind: Any, options: dict[str, Any], groups: Any, config: SFTConfig) -> Any:
    """AdamW over ``groups``, with float32 masters where the run asks for them and some are needed.

    Raises:
        ValueError: ``vision_learning_rate`` with an optimizer that is no ``torch.optim.AdamW``.
    """
    if kind is not torch.optim.AdamW:
        raise ValueError(
            f"vision_learning_rate is {config.vision_learning_rate} and optim={config.optim}; only "
            "adamw_torch and adamw_torch_fused take a learning rate for a part of the model"
        )
    weights = [weight for group in groups for weight in group["params"]]
    narrow = any(weight.element_size() <= 2 for weight in weights)
    masters = config.float32_masters and narrow
    return (MasterAdamW if masters else kind)(groups, **options)
