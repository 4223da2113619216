"""What a supervised run cannot do is said before it begins, with the remedy."""

from __future__ import annotations

import pytest
import torch

from foveal import FastVisionModel, GRPOConfig, SFTConfig, SFTTrainer
from foveal.data import load_rows
from foveal.models.state import state_of
from foveal.testing import tiny
from foveal.train.sft_data import RowOrder
from tests.samples import picture, row

GOOD = row("How many?", picture(0, 56, 56), completion="<answer>3</answer>")


def config(tmp_path, **given) -> SFTConfig:
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    return SFTConfig(**{**settings, **given})


def make(tmp_path, rows=(GOOD,), model=None, **given):
    model, processor = model or tiny("qwen2_5_vl")
    return SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=list(rows) if isinstance(rows, tuple) else rows,
        args=config(tmp_path, **given),
    )


@pytest.mark.parametrize(
    ("bad", "given", "message"),
    [
        (row("?"), {}, "row 1: it has no completion.*completion_template"),
        ({**GOOD, "completion": ""}, {}, "row 1: its completion is empty"),
        ({**GOOD, "completion": "x" * 40}, {"max_completion_length": 30},
         "row 1: the completion has 41 tokens.*max_completion_length is 30.*not cut"),
        ({**GOOD, "completion": "a <|image_pad|>"}, {}, "row 1: the completion's text holds"),
    ],
)  # fmt: skip
def test_a_bad_completion_anywhere_stops_the_run_at_its_start(tmp_path, bad, given, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, (GOOD, bad), **given)
    with pytest.raises(ValueError, match=message):
        SFTTrainer(
            model=tiny("qwen2_5_vl")[0],
            processing_class=tiny("qwen2_5_vl")[1],
            train_dataset=[GOOD],
            eval_dataset=[GOOD, bad],
            args=config(tmp_path, **given),
        )


def test_a_long_prompt_is_dropped_and_a_row_above_the_models_bound_refused(tmp_path, capsys):
    long = {**GOOD, "problem": "<image>" + "long " * 40}
    run = make(tmp_path, (long, GOOD), max_prompt_length=120)
    assert run.train_dataset.indices == [1]
    assert "dropped 1 of 2 prompts" in capsys.readouterr().out
    model = tiny("qwen2_5_vl")
    state_of(model[0]).max_seq_length = 30
    with pytest.raises(ValueError, match=r"row 0: prompt and completion .*max_seq_length=30"):
        make(tmp_path, (GOOD,), model=model)


def test_a_turn_that_ends_where_no_rollout_stops_is_refused(tmp_path):
    model, processor = tiny("qwen2_5_vl")
    model.generation_config.eos_token_id = [5]
    with pytest.raises(ValueError, match=r"'<\|im_end\|>' \(258\).*stops at \[5\]"):
        make(tmp_path, model=(model, processor))


def test_float16_weights_are_not_trained_but_an_adapter_on_them_is(tmp_path):
    model, processor = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"trained in float16.*bfloat16"):
        make(tmp_path, model=(model.half(), processor))
    adapted = FastVisionModel.get_peft_model(model, r=4, use_gradient_checkpointing=False)
    make(tmp_path, model=(adapted, processor))


def test_a_model_of_which_nothing_is_trained_is_refused(tmp_path):
    model, processor = tiny("qwen2_5_vl")
    with pytest.raises(ValueError, match="no parameter of the model is trained"):
        make(tmp_path, model=(model.requires_grad_(False), processor))


def test_settings_of_another_trainer_and_streamed_rows_are_refused(tmp_path):
    model, processor = tiny("qwen2_5_vl")
    with pytest.raises(TypeError, match=r"args is a GRPOConfig; give a foveal\.SFTConfig"):
        SFTTrainer(model, GRPOConfig(output_dir=str(tmp_path), use_cpu=True))
    (tmp_path / "rows.jsonl").write_text('{"problem": "?", "completion": "3"}\n')
    streamed = load_rows(tmp_path / "rows.jsonl", streaming=True)
    with pytest.raises(ValueError, match="the training set is streamed"):
        make(tmp_path, streamed, model=(model, processor))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"completion_template": "42"}, "completion_template is '42'"),
        ({"pass_tokens": 0}, "pass_tokens is 0"),
        ({"eval_answers": -1}, "eval_answers is -1"),
        ({"eval_max_tokens": 0}, "eval_max_tokens is 0"),
        ({"gradient_checkpointing": "sometimes"}, "gradient_checkpointing is 'sometimes'"),
    ],
)
def test_a_setting_out_of_range_is_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **given)


def test_a_rate_of_the_towers_own_needs_adamw(tmp_path):
    run = make(tmp_path, optim="sgd", vision_learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"vision_learning_rate is 0.001 and optim=.*adamw_torch"):
        run.create_optimizer()
    assert type(make(tmp_path, optim="sgd").create_optimizer()) is torch.optim.SGD


def test_each_epoch_has_an_order_of_its_own_and_leaves_no_row_out():
    order = RowOrder(10, 4, shuffle=True, seed=1)
    first = list(order)
    assert [len(batch) for batch in first] == [4, 4, 2] and len(order) == 3
    assert sorted(row for batch in first for row in batch) == list(range(10))
    order.epoch = 1
    assert list(order) != first
    assert sorted(row for batch in order for row in batch) == list(range(10))
    assert list(RowOrder(10, 4, shuffle=True, seed=1)) == first
    assert list(RowOrder(10, 4, shuffle=True, seed=2)) != first
    assert list(RowOrder(5, 2, shuffle=False, seed=1, drop_last=True)) == [[0, 1], [2, 3]]


def test_a_policy_that_takes_from_a_rollout_is_full_checkpointing_here_and_says_so(
    tmp_path, capsys
):
    make(tmp_path, gradient_checkpointing="captured")
    assert '"captured" is True here: there is no rollout' in capsys.readouterr().out
