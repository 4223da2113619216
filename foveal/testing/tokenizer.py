"""A byte-level tokenizer with a family's special tokens, made without any file.

Every text encodes (one token a byte), so a tiny model needs no vocabulary of its own and a test
can write any prompt it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
GEMMA_SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)

QWEN_CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

# Gemma has no system role: its text opens the first user turn.
GEMMA_CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0].role == 'system' -%}
{%- set lead = messages[0].content if messages[0].content is string
    else messages[0].content[0].text -%}
{%- set turns = messages[1:] -%}
{%- else -%}
{%- set lead = '' -%}
{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if loop.first and lead %}{{ lead }}

{% endif -%}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
<start_of_image>
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}
<start_of_turn>model
{% endif -%}
"""


def byte_tokenizer(
    special_tokens: tuple[str, ...], chat_template: str, **roles: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes followed by ``special_tokens``.

    ``roles`` names the tokens that transformers asks for, such as ``eos_token="<|im_end|>"``.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", clean_up_tokenization_spaces=False, **roles
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(
        QWEN_SPECIAL_TOKENS,
        QWEN_CHAT_TEMPLATE,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(
        GEMMA_SPECIAL_TOKENS,
        GEMMA_CHAT_TEMPLATE,
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
        extra_special_tokens={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    )
