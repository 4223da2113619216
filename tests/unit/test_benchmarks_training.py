"""The scripts that measure training run, and their arithmetic is what torch counts."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveal.kernels.prefix_attention import _who_sees_whom
from foveal.models.checkpointing import set_checkpointing
from tests.conftest import REPOSITORY

TINY = ["--scale", "tiny", "--layers", "2", "--commit", "abc"]
ORIGIN = {"benchmark", "case", "system", "seconds", "tokens_per_second", "peak_gib", "breakdown"}


@pytest.fixture
def script(monkeypatch):
    """Imports a script as running it would: with its own folder on the path."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("model", ["qwen2.5-vl-7b", "gemma-3-4b"])
@pytest.mark.parametrize(("system", "policy"), [("group", "none"), ("group", "full"),
                                                ("plain", "none")])  # fmt: skip
def test_the_products_of_a_pass_are_those_that_torch_counts(script, model, system, policy):
    # Of both sides only products with weights: torch's mm and addmm. The CPU's attention computes
    # masked pairs, too; which pairs are seen is the next test.
    passes, arithmetic = script("train_pass"), script("arithmetic")
    argv = ["--model", model, "--cases", "2x3", "--tokens", "9", "--ragged", "--system", system]
    arguments = passes.parse([*argv, "--pass-rows", "2", "--policy", policy, *TINY])
    peft_model, processor = passes.build(
        model, device="cpu", layers=2, scale="tiny", dtype=torch.float32
    )
    ((case, _, _),) = arguments.runs
    subject = passes.prepare(model, peft_model, processor, case, system, arguments)
    set_checkpointing(peft_model, passes.POLICIES[policy])
    subject.encode()
    with FlopCounterMode(display=False) as counter:
        subject.learn()
    by_operator = counter.get_flop_counts()["Global"]
    counted = by_operator[torch.ops.aten.mm] + by_operator.get(torch.ops.aten.addmm, 0)
    products = replace(arithmetic.Products.of(peft_model), attention_width=0)
    prompts = [len(prompt.ids) for prompt in subject.prompts]
    lengths = [[4, 6, 9]] * 2
    assert [len(row.completion.ids) for row in subject.rows] == [4, 6, 9, 4, 6, 9]
    layout = arithmetic.shared_layout(prompts, lengths)
    if system == "plain":
        layout = arithmetic.row_layout(prompts, lengths, 2)
    # Checkpointing stops behind what backward needs: the last way up of an adapter is spared.
    assert arithmetic.done_flop(products, layout, policy) == pytest.approx(counted, rel=0.002)
    if system == "group" and policy == "none":
        head_again = 2 * products.head * layout.head_tokens
        assert arithmetic.useful_flop(products, layout) + head_again == pytest.approx(counted)


@pytest.mark.parametrize("window", [0, 3, 6, 40])
def test_pairs_are_counted_one_by_one(script, window):
    arithmetic = script("arithmetic")
    prompt, lengths = 5, [4, 1, 9]
    counted = sum(
        arithmetic.seen_pairs(arithmetic.Segment(length, prompt), window) for length in lengths
    )
    assert counted == int(_who_sees_whom(prompt, lengths, window).sum())
    layout = arithmetic.shared_layout([prompt], [lengths])
    products = arithmetic.Products(0, 0, 0, 0, 0, attention_width=10, windows=(window,))
    segments = [arithmetic.Segment(5), arithmetic.Segment(3, 5), arithmetic.Segment(8, 5)]
    pairs = sum(arithmetic.seen_pairs(segment, window) for segment in segments)
    assert arithmetic.useful_flop(products, layout) == 120 * pairs
    assert arithmetic.done_flop(products, layout, "full") == 180 * pairs
    assert arithmetic.done_flop(products, layout, "unheard of") is None


def test_a_training_pass_is_measured_with_nothing_missing(script, tmp_path, capsys):
    path = tmp_path / "train_pass.json"
    argv = ["--cases", "1x2", "--tokens", "4", "--repeats", "1", "--no-lora", "--profile", *TINY]
    script("train_pass").main([*argv, "--policy", "none", "offload", "--out", str(path)])
    records = json.loads(path.read_text())
    assert [r["system"] for r in records] == ["group, none", "group, offload"]
    for record in records:
        assert record.keys() >= ORIGIN | {"useful_tflop", "done_tflop", "share_done"}
        assert record["case"] == "qwen2.5-vl-7b, 1 x 2, 4 tokens, no LoRA, 2 layers, tiny"
        assert record["tokens_per_second"] == pytest.approx(8 / record["seconds"])
        kernels = record["breakdown"]["kernels"]
        assert max(kernels, key=kernels.get) == "matrix products"
    assert records[0]["done_tflop"] < records[1]["done_tflop"]
    assert records[0]["predicted_gib"] > records[1]["predicted_gib"] > 0
    assert "aten::mm" in capsys.readouterr().out


@pytest.mark.parametrize("system", [[], ["--policy", "captured"], ["--peer", "trl"]])
def test_a_step_is_measured_with_nothing_missing(script, tmp_path, system):
    path = tmp_path / "step.json"
    argv = ["--prompts", "1", "--completions", "2", "--new-tokens", "4", "--num-steps", "2"]
    script("step").main([*argv, *system, *TINY, "--out", str(path)])
    (record,) = json.loads(path.read_text())
    assert record.keys() >= ORIGIN
    assert record["case"] == "qwen2.5-vl-7b, 1 x 2, 4 new tokens, 2 layers, tiny"
    names = {"--peer": "TRL 1.16", "--policy": "foveal, group pass, captured"}
    assert record["system"].startswith(names[system[0]] if system else "foveal, group pass, full")
    cosines = record.get("gradient_cosines", {})
    assert len(cosines) == (2 if "captured" in system else 0), "one a layer"
    assert all(cosine > 0.9999 for cosine in cosines.values())
    assert 0 < record["breakdown"]["time/rollout"] < record["seconds"]


def test_a_step_with_an_early_end_or_nothing_to_learn_is_refused(script):
    arguments = script("step").parse(["--new-tokens", "7"])
    last_step = script("step_workload").last_step
    fine = {"loss": 0.0, "completions/min_length": 7.0, "frac_reward_zero_std": 0.0}
    assert last_step([fine, {"train_runtime": 1.0}], arguments) == fine
    for wrong in ({"completions/min_length": 6.0}, {"frac_reward_zero_std": 0.25}):
        with pytest.raises(RuntimeError, match="does not compare"):
            last_step([{**fine, **wrong}], arguments)


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Traits>", "attention"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::rsqrt_kernel>", "norms"),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor>", "elementwise"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix products"),
        ("void at::native::cunn_SoftMaxForward<4, float>", "head and softmax"),
        ("Memcpy DtoH (Device -> Pinned)", "copies to and from the host"),
        ("Memcpy DtoD (Device -> Device)", "elementwise"),
    ],
)
def test_a_kernel_of_training_is_counted_where_it_belongs(script, kernel, group):
    kernel_time = script("kernel_time")
    assert kernel_time.group_of(kernel, kernel_time.TRAINING_GROUPS) == group


def test_a_package_that_is_not_there_is_named_before_anything_is_made(
    script, tmp_path, monkeypatch
):
    step, step_trl = script("step"), script("step_trl")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        step_trl.importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name)
    )
    with pytest.raises(RuntimeError, match="needs the package vllm, which is not installed"):
        step_trl.measure_trl(step.parse(["--peer", "trl-vllm"]), tmp_path)


def test_gradients_of_the_same_rows_are_compared_by_layer(script, tmp_path):
    out = tmp_path / "gradients.json"
    argv = ["--tokens", "5", "--completions", "2", "--out", str(out), *TINY]
    script("gradients").main(argv)
    records = json.loads(out.read_text())
    assert len({record["system"] for record in records}) == 4
    for record in records:
        assert 0.99 < record["cosine_least"] <= record["cosine_mean"] < 1
        assert record["least_in"].startswith("layer ")
    table = script("tables").gradients_table(records)
    assert table.count("2 completions, 10 tokens") == 4
