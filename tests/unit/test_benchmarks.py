"""The scripts in benchmarks/ run, and what they count is right."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import pytest
import torch

from foveal.data import PromptBuilder, load_rows
from foveal.testing import tiny
from foveal.types import Completion, Group
from tests.conftest import REPOSITORY

MODELS = ("qwen2.5-vl-7b", "qwen3-vl-8b", "gemma-3-4b")
FIELDS = {
    "benchmark",
    "case",
    "system",
    "seconds",
    "tokens_per_second",
    "peak_gib",
    "breakdown",
    "floor_seconds",
    "ratio_to_floor",
    "logprob_difference",
    "capture_seconds",
    "card",
    "versions",
    "commit",
    "command",
}


@pytest.fixture
def script(monkeypatch):
    """Imports a script as running it would: with its own folder on the path."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("model", MODELS)
def test_a_rollout_is_measured_with_nothing_missing(script, model, tmp_path):
    path = tmp_path / "rollout.json"
    argv = ["--model", model, "--system", "transformers", "--cases", "1x2", "--new-tokens", "3"]
    argv += ["--scale", "tiny", "--layers", "2", "--out", str(path), "--commit", "abc"]
    script("rollout").main(argv)
    (record,) = json.loads(path.read_text())
    assert record.keys() >= FIELDS
    assert record["case"] == f"{model}, 1 x 2, 3 new tokens, 2 layers, tiny"
    assert record["commit"] == "abc" and "--layers 2" in record["command"]
    assert record["tokens_per_second"] == pytest.approx(6 / record["seconds"])
    assert record["logprob_difference"]["tokens"] == 6
    assert record["logprob_difference"]["max"] < 0.1
    if not torch.cuda.is_available():
        assert record["floor_seconds"] is record["ratio_to_floor"] is record["peak_gib"] is None


def test_a_short_completion_does_not_pass_as_a_fast_one(script):
    model, processor = tiny("qwen2_5_vl")
    backend = SimpleNamespace(
        generate=lambda prompts, n, sampling: [
            Group(prompt, (Completion((1,), "", "stop"),)) for prompt in prompts
        ]
    )
    subject = script("rollout").Subject(
        model, processor, backend, script("models").SIZES[MODELS[0]], torch.device("cpu"), 0, None
    )
    prompts = PromptBuilder(processor, image_token_id=model.config.image_token_id)
    prompt = prompts.build(load_rows([{"problem": "a", "answer": "b"}])[0], 0)
    with pytest.raises(RuntimeError, match="completions of 1 to 1 tokens, asked for 5"):
        subject.generate([prompt], 1, 5)


@pytest.mark.parametrize(("new_tokens", "expected"), [(1, 0), (4, 3840), (7, 8160)])
def test_the_floor_reads_prompts_once_a_group_and_no_further_than_the_window(
    script, new_tokens, expected
):
    # One full layer and one of window 4; prompts of 3 and 5 tokens, 2 completions of each.
    # Own tokens 1, 2, 3: the full layer sees 8 + 4 * own = 12, 16, 20 tokens; the sliding one
    # (3 + 3) + 4, (2 + 2) + 8, (1 + 1) + 12. That is 84 tokens of 10 bytes and 3 times 1000.
    # Own tokens 4, 5, 6: 24, 28, 32 and, the prompts out of sight, 4 * 4 = 16 each.
    floor = script("floor")
    decoder = floor.Decoder(weight_bytes=1000, kv_bytes=10, windows=(None, 4))
    assert floor.decode_bytes(decoder, [3, 5], 2, new_tokens) == expected


def test_the_floor_counts_the_head_and_not_the_embedding(script):
    models, floor = script("models"), script("floor")
    options = {"device": "cpu", "layers": 2, "lora_rank": 4, "scale": "tiny"}
    untied = floor.Decoder.of(models.build("qwen3-vl-8b", **options)[0])
    linears = [(1024, 1024)] * 2 + [(1024, 256)] * 2 + [(1024, 3072)] * 3
    layer = sum(a * b + 4 * (a + b) for a, b in linears) + 2 * 1024 + 2 * 128
    assert untied.weight_bytes == 2 * (2 * layer + 1024 + 1024 * models.TINY_VOCABULARY)
    assert untied.kv_bytes == 2 * 2 * 128 * 2
    assert untied.windows == (None, None)
    tied = floor.Decoder.of(models.build("gemma-3-4b", **{**options, "layers": 6})[0])
    linears = [(640, 512)] * 2 + [(640, 256)] * 2 + [(640, 2560)] * 3
    layer = sum(a * b + 4 * (a + b) for a, b in linears) + 4 * 640 + 2 * 256
    assert tied.weight_bytes == 2 * (6 * layer + 640 + 640 * models.TINY_VOCABULARY)
    assert tied.windows == (1024,) * 5 + (None,)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("scale", ["full", "tiny"])
def test_a_picture_has_the_tokens_that_the_benchmark_names(script, model, scale):
    models = script("models")
    size = models.size_of(model, scale)
    stock, processor = tiny(size.family)
    builder = PromptBuilder(
        models.sized_processor(processor, size), image_token_id=stock.config.image_token_id
    )
    rows = load_rows(models.picture_rows(size, 2))
    first, second = (builder.build(rows[index], index).images[0] for index in range(2))
    assert first.num_tokens == size.picture_tokens
    assert first.digest != second.digest


def test_the_adapter_takes_part(script):
    model, _ = script("models").build("gemma-3-4b", device="cpu", layers=1, scale="tiny")
    ups = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert len(ups) == 7 and all(p.any() for p in ups)


def test_a_record_replaces_its_own_and_no_other(script, tmp_path):
    write_records, path = script("record").write_records, tmp_path / "new" / "r.json"

    def record(system, seconds):
        return {"benchmark": "rollout", "case": "c", "system": system, "seconds": seconds}

    write_records(path, [record("a", 1), record("b", 2)])
    write_records(path, [record("a", 3)])
    assert json.loads(path.read_text()) == [record("a", 3), record("b", 2)]
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "matrix products"),
        ("void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("_rms_norm_kernel", "norms"),
        ("void at::native::softMaxForward<4, float>", "sampling"),
        ("void at::native::CatArrayBatchedCopy<float>", "rotary and cache"),
        ("Memcpy DtoD (Device -> Device)", "other"),
    ],
)
def test_a_kernel_is_counted_where_it_belongs(script, kernel, group):
    assert script("kernel_time").group_of(kernel) == group


def test_what_runs_once_a_rollout_is_no_part_of_a_decode_step(script):
    weight = torch.randn(256, 256)

    def generate(tokens):
        weight @ weight
        for _ in range(tokens):
            torch.erf(weight)

    kernels = script("kernel_time").decode_kernels(generate, torch.device("cpu"))
    assert "aten::erf" in kernels and "aten::mm" not in kernels
