"""Make the demo's model: a tiny Qwen2.5-VL, cold-started partway on counting and locating shapes.

    python examples/tiny_model/build.py [--out foveal/demo_model] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from foveal.tasks import ShapesTask
from foveal.testing.tokenizer import QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS

VOCABULARY = 512
TEXT_WIDTH = 128
PICTURE = 112
INIT=0.06
THETA=20.0


def make_tokenizer() -> Any:
    """Byte-level BPE of the task's own text: any text encodes, and its words are one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(QWEN_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    task = ShapesTask()
    rows = [task.generate(seed, level) for level in (1, 5) for seed in range(500)]
    texts = [f"user\n{row['problem'].removeprefix('<image>')}\nassistant\n<answer>{row['answer']}</answer>" for row in rows]
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in QWEN_SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def make_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14, merge_size=2, size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=14, merge_size=2),
        chat_template=QWEN_CHAT_TEMPLATE,
    )


def make_model(tokenizer: Any, layers=4, vdepth=2, vwidth=96) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096, initializer_range=INIT,
        bos_token_id=None,
        eos_token_id=token("im_end"),
        pad_token_id=token("endoftext"),
        rope_parameters={"rope_type": "default", "rope_theta": THETA, "mrope_section": [4, 6, 6]},
    )
    vision = dict(
        depth=vdepth,
        hidden_size=vwidth,
        intermediate_size=2 * vwidth,
        num_heads=vwidth // 32,
        out_hidden_size=TEXT_WIDTH,
        window_size=112,
        fullatt_block_indexes=[vdepth - 1],
        patch_size=14, initializer_range=INIT,
    )
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=token("image_pad"),
        video_token_id=token("video_pad"),
        vision_start_token_id=token("vision_start"),
        vision_end_token_id=token("vision_end"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [token("im_end"), token("endoftext")]
    model.generation_config.pad_token_id = token("endoftext")
    return model


def conversation(row):
    text = row["problem"].removeprefix("<image>")
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def encode(processor, rows, with_answer):
    texts = []
    for row in rows:
        t = processor.apply_chat_template(conversation(row), add_generation_prompt=True)
        if with_answer:
            t += f"<answer>{row['answer']}</answer><|im_end|>"
        texts.append(t)
    images = [row["images"][0] for row in rows]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")
