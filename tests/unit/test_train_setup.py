"""What is refused before a run begins, with one message that says what to do."""

from __future__ import annotations

from types import SimpleNamespace

import datasets
import peft
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from foveal import FastVisionModel, GRPOConfig, GRPOTrainer
from foveal.testing import save_tiny, tiny
from tests.samples import picture, row

REWARD = "exact_answer"
ROWS = [row(f"How many{' very' * (30 * (i == 2))} red things?") for i in range(4)]


@pytest.fixture(scope="module")
def stock():
    return tiny("qwen2_5_vl")


def adapted(**flags):
    model, processor = tiny("qwen2_5_vl")
    return FastVisionModel.get_peft_model(model, r=2, **flags), processor


def trainer(tmp_path, pair, config=None, **given):
    model, processor = pair
    settings = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 16,
    }
    arguments = {
        "reward_funcs": REWARD,
        "train_dataset": ROWS,
        "processing_class": processor,
        "args": GRPOConfig(**{**settings, **(config or {})}),
    }
    return GRPOTrainer(model, **{**arguments, **given})


# -- the model


def test_an_unknown_model_type_lists_the_supported_ones(tmp_path, stock):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_attention_heads=2, **sizes))
    with pytest.raises(ValueError) as error:
        trainer(tmp_path, (llama, stock[1]))
    assert "model type 'llama' is not supported" in str(error.value)
    assert all(name in str(error.value) for name in ("gemma3", "qwen2_5_vl", "qwen3_vl"))


def test_a_model_of_which_nothing_is_trained_is_refused(tmp_path):
    model, processor = adapted()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model is trained; add an adapter"):
        trainer(tmp_path, (model, processor))


def test_lora_dropout_of_the_users_own_adapter_is_refused(tmp_path):
    model, processor = tiny("qwen2_5_vl")
    own = peft.LoraConfig(r=2, lora_dropout=0.05, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"lora_dropout is 0\.05; .* lora_dropout=0"):
        trainer(tmp_path, (model, processor), peft_config=own)


def test_an_adapter_on_the_head_is_refused(tmp_path):
    """Log-probabilities are computed from the head's weight in pieces, without its adapter."""
    model, processor = tiny("qwen2_5_vl")
    own = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="the adapter covers lm_head"):
        trainer(tmp_path, (model, processor), peft_config=own)


def test_a_second_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="already has an adapter; leave peft_config None"):
        trainer(tmp_path, adapted(), peft_config=peft.LoraConfig(target_modules=["q_proj"]))


def test_a_peft_config_adds_the_adapter_it_describes(tmp_path):
    model, processor = tiny("qwen2_5_vl")
    own = peft.LoraConfig(r=3, target_modules=r".*language_model.*\.q_proj")
    made = trainer(tmp_path, (model, processor), peft_config=own)
    trained = {n: p.shape for n, p in made.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 3 and all("q_proj" in name for name in trained)


def test_a_model_given_by_name_is_loaded_with_its_processor(tmp_path):
    folder = save_tiny(tmp_path / "model", "qwen2_5_vl")
    options = {"model_init_kwargs": {"dtype": "float32", "max_seq_length": 500, "device": "cpu"}}
    made = trainer(tmp_path / "run", (str(folder), None), options)
    assert made.model.foveal.max_seq_length == 500
    assert made.processing_class.image_processor is not None
    model, _ = FastVisionModel.from_pretrained(folder, device="cpu")
    with pytest.raises(ValueError, match="model_init_kwargs is for a model given by name"):
        trainer(tmp_path / "run", (model, made.processing_class), options)
    # A loaded model knows where its processor lies.
    again = trainer(tmp_path / "run", (model, None))
    assert again.processing_class.image_processor is not None


def test_a_model_without_a_name_needs_its_processor(tmp_path, stock):
    with pytest.raises(ValueError, match="give its processor"):
        trainer(tmp_path, (stock[0], None))


def test_a_tokenizer_is_no_processor(tmp_path, stock):
    with pytest.raises(TypeError, match="which reads no pictures; give the model's processor"):
        trainer(tmp_path, (stock[0], stock[1].tokenizer))


# -- lengths


def test_lengths_beyond_max_seq_length_are_told_with_their_sum(tmp_path):
    pair = adapted(max_seq_length=100)
    with pytest.raises(ValueError) as error:
        trainer(tmp_path, pair, {"max_prompt_length": 90})
    said = str(error.value)
    assert "max_prompt_length=90 and max_completion_length=16 add up to 106 tokens" in said
    assert "max_seq_length=100; lower them" in said
    trainer(tmp_path, pair, {"max_prompt_length": 84})


def test_longer_prompts_are_dropped_counted_and_listed(tmp_path, capsys):
    made = trainer(tmp_path, adapted(), {"max_prompt_length": 80}, eval_dataset=[ROWS[2], ROWS[0]])
    assert made.train_dataset.prompt_indices == [0, 1, 3]
    assert made.eval_indices == [1]
    said = " ".join(capsys.readouterr().out.split())
    assert "dropped 1 of 4 prompts longer than max_prompt_length=80: rows 2 (" in said
    assert "dropped 1 of 2 prompts longer than max_prompt_length=80: rows 0 (" in said


def test_prompts_that_are_all_too_long_name_the_shortest(tmp_path):
    with pytest.raises(ValueError, match=r"all 4 prompts are longer .* the shortest has \d+"):
        trainer(tmp_path, adapted(), {"max_prompt_length": 5})


# -- the data


def test_too_few_prompts_for_a_rollout_is_told_before_anything_runs(tmp_path):
    config = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}
    with pytest.raises(ValueError, match="one rollout takes 8 prompts, but the training set has 4"):
        trainer(tmp_path, adapted(), config)


def test_dropped_prompts_do_not_count_for_a_rollout(tmp_path):
    config = {"per_device_train_batch_size": 16, "max_prompt_length": 80}
    with pytest.raises(ValueError, match="one rollout takes 4 prompts, but the training set has 3"):
        trainer(tmp_path, adapted(), config)


def test_a_streamed_set_needs_max_steps_and_is_no_evaluation_set(tmp_path):
    streamed = datasets.Dataset.from_list([{"problem": "a", "answer": "b"}]).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"no known number of rows.*set max_steps"):
        trainer(tmp_path, adapted(), train_dataset=streamed)
    trainer(tmp_path, adapted(), {"max_steps": 1}, train_dataset=streamed)
    with pytest.raises(ValueError, match="the evaluation set is streamed"):
        trainer(tmp_path, adapted(), eval_dataset=streamed)


def test_the_first_row_is_tried_before_anything_runs(tmp_path):
    wrong = [{"problem": "<image><image>Which?", "images": [picture(0, 40, 40)], "answer": "1"}]
    with pytest.raises(ValueError, match="row 0"):
        trainer(tmp_path, adapted(), train_dataset=wrong * 4)


@pytest.mark.parametrize(("missing", "does"), [("train", "train"), ("eval", "evaluate")])
def test_a_missing_data_set_is_named_when_it_is_needed(tmp_path, missing, does):
    made = trainer(tmp_path, adapted(), train_dataset=None)
    with pytest.raises(ValueError, match=f"no {missing}_dataset; give one"):
        getattr(made, does)()


# -- arguments


@pytest.mark.parametrize(
    "name",
    [
        "reward_processing_classes",
        "quantization_config",
        "tools",
        "rollout_func",
        "environment_factory",
    ],
)
def test_arguments_of_trls_trainer_that_do_nothing_here_are_refused(tmp_path, stock, name):
    with pytest.raises(ValueError, match=f"^{name} is not supported; "):
        trainer(tmp_path, stock, **{name: object()})


def test_arguments_of_another_class_are_refused(tmp_path, stock):
    with pytest.raises(TypeError, match="args is a SimpleNamespace; give a foveal"):
        trainer(tmp_path, stock, args=SimpleNamespace(output_dir="x"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reward_funcs": []}, "reward_funcs is empty"),
        ({"reward_funcs": "exact_anser"}, "did you mean 'exact_answer'"),
        ({"config": {"reward_weights": [1.0, 2.0]}}, "2 reward weights .* for 1 reward"),
        ({"config": {"beta": 0.1, "reference": "off"}}, 'reference="off" switches an adapter off'),
    ],
)
def test_rewards_and_references_that_cannot_be_meant_are_refused(tmp_path, stock, given, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, stock, **given)


def test_an_8_bit_optimizer_on_a_cpu_is_replaced_and_this_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = trainer(tmp_path, adapted(), {"optim": "adamw_8bit"})
    assert made.args.optim == "adamw_torch"
    assert "optim=adamw_8bit is replaced by adamw_torch" in capsys.readouterr().out


def test_checkpointing_chosen_with_the_adapter_wins(tmp_path):
    pair = adapted(use_gradient_checkpointing="unsloth")
    assert trainer(tmp_path, pair).config.gradient_checkpointing == "offload"


def test_checkpointing_that_nobody_chose_for_the_model_gives_way_to_the_runs(tmp_path):
    pair = adapted()
    for asked in ("auto", False):
        FastVisionModel.for_training(pair[0])
        run = trainer(tmp_path, pair, {"gradient_checkpointing": asked})
        assert run.config.gradient_checkpointing == asked
    chosen = adapted(use_gradient_checkpointing="auto")
    assert trainer(tmp_path, chosen).config.gradient_checkpointing == "auto"
