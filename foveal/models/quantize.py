"""4-bit and 8-bit base weights through bitsandbytes: the linear layers of the decoder, no others.

LoRA leaves the base as it is, so the policy that is rolled out and the one that is trained are the
same quantised weights.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from foveal.models.state import say

if TYPE_CHECKING:
    import torch

    from foveal.models.family import Family
    from foveal.models.state import Quantisation


def choose_quantisation(
    device: torch.device, dtype: torch.dtype, *, load_in_4bit: bool, load_in_8bit: bool
) -> Quantisation | None:
    """What can be done of what was asked for; says so where it cannot.

    Args:
        device: where the weights go.
        dtype: of weights that are not quantised.
        load_in_4bit: NF4.
        load_in_8bit: LLM.int8().

    Raises:
        ValueError: if both are asked for.
        ImportError: on a GPU without bitsandbytes.
    """
    if load_in_4bit and load_in_8bit:
        raise ValueError("load_in_4bit and load_in_8bit are both True; choose one")
    if not (load_in_4bit or load_in_8bit):
        return None
    quantisation: Quantisation = "4bit" if load_in_4bit else "8bit"
    bits = "4-bit" if load_in_4bit else "8-bit"
    if device.type != "cuda":
        say(f"no CUDA device: loading in {str(dtype).removeprefix('torch.')} instead of {bits}")
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f'{bits} loading needs bitsandbytes: pip install "foveal[quant]", or load without '
            f"load_in_{quantisation}"
        )
    return quantisation


def quantisation_config(
    family: Family, quantisation: Quantisation, compute_dtype: torch.dtype
) -> Any:
    """Transformers' config for NF4 with double quantisation (arXiv:2305.14314) or LLM.int8()."""
    from transformers import BitsAndBytesConfig

    skipped = unquantised_modules(family)
    if quantisation == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skipped,
    )


def unquantised_modules(family: Family) -> list[str]:
    """Tower, projector, embeddings and head: they stay in 16 bit."""
    return [*family.vision_paths, f"{family.language_path}.embed_tokens", "lm_head"]
