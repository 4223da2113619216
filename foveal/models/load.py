"""Checkpoint -> model and processor; the switch between training and inference.

The models are transformers' own classes. What is changed on one of them is listed in
``model.foveal.changes``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.models.allocator import grow_segments
from foveal.models.attention import fast_vision_attention
from foveal.models.checkpointing import parse_checkpointing, set_checkpointing
from foveal.models.family import Family, family_module, stock_model
from foveal.models.lora import ADAPTER_CONFIG, load_adapter
from foveal.models.merge import bind_merged_saving
from foveal.models.precision import HALF_TYPES
from foveal.models.quantize import choose_quantisation, quantisation_config
from foveal.models.state import ModelState, quiet, refuse_unknown, say, state_of
from foveal.models.vision_mlp import fast_vision_mlp
from foveal.models.vision_norm import fast_vision_norms

NATIVE_BF16 = (8, 0)
"""The least compute capability whose arithmetic units know bfloat16 (Ampere)."""


def from_pretrained(
    model_name: str | Path,
    max_seq_length: int | None = None,
    dtype: torch.dtype | str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    fast_inference: bool = False,
    gpu_memory_utilization: float | None = None,
    attn_implementation: str = "sdpa",
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    use_gradient_checkpointing: bool | str | None = None,
    random_state: int = 3407,
    **unknown: Any,
) -> tuple[Any, Any]:
    """Load a model and its processor; prints the number format chosen and why.

    Args:
        model_name: hub id or folder of a checkpoint, or of an adapter, which is loaded on its
            base and can be trained on.
        max_seq_length: most tokens of prompt and completion together.
        dtype: of the weights; None takes bfloat16 where the GPU computes in it, float16 on older
            GPUs, float32 on a CPU.
        load_in_4bit: base weights of the decoder in NF4; needs a GPU.
        load_in_8bit: the same in int8.
        fast_inference: vLLM rollouts.
        gpu_memory_utilization: part of the GPU that rollouts may take, in (0, 1].
        attn_implementation: as in transformers; with "sdpa" the vision tower attends to all
            windows and pictures in one call a layer (``foveal.models.attention``).
        device: the GPU if there is one.
        trust_remote_code: for the processor; the models are transformers' own.
        revision: branch, tag or commit on the hub.
        token: for private and gated models on the hub.
        use_gradient_checkpointing: True, False, "selective", "offload" ("unsloth" means the
            same), "captured" or "auto", for the adapter that comes later.
        random_state: accepted for the sake of recipes that have it; loading draws nothing.

    Returns:
        ``(model, processor)``, the model in evaluation mode, the tokenizer padding on the left.

    Raises:
        ValueError: if there is no such checkpoint, its family is not supported, it is damaged, or
            an argument is out of range.
        TypeError: for an unknown argument.
        ImportError: if bitsandbytes is needed and missing.
    """
    refuse_unknown(from_pretrained, unknown)
    _check_range("max_seq_length", max_seq_length, 1, None)
    _check_range("gpu_memory_utilization", gpu_memory_utilization, 0, 1)
    checkpointing = use_gradient_checkpointing
    if checkpointing is not None:
        checkpointing = parse_checkpointing(checkpointing)
    where = find_checkpoint(model_name, revision, token)
    family = family_module(str(where.config.get("model_type"))).FAMILY
    grow_segments()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype, reason = choose_dtype(dtype, device)
    quantisation = choose_quantisation(
        device, dtype, load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit
    )
    options: dict[str, Any] = {"attn_implementation": attn_implementation}
    if quantisation is not None:
        options["quantization_config"] = quantisation_config(family, quantisation, dtype)
    model = _load_weights(where, family, dtype, device, token, options)
    processor = _load_processor(where, token, trust_remote_code)
    model.foveal = ModelState(
        family=family.model_type,
        model_name=where.base,
        revision=where.revision,
        max_seq_length=max_seq_length,
        dtype=dtype,
        quantisation=quantisation,
        checkpointing=checkpointing,
        fast_inference=fast_inference,
        gpu_memory_utilization=gpu_memory_utilization,
    )
    bind_merged_saving(model)
    fast_vision_attention(model)
    fast_vision_mlp(model)
    fast_vision_norms(model)
    packed = "" if quantisation is None else f", decoder in {quantisation}"
    say(f"{family.model_type} from {where.base} in {_name(dtype)}{packed}: {reason}")
    if fast_inference:
        say(
            "fast_inference=True: the vLLM backend is not part of this version; rollouts use the "
            "built-in engine"
        )
    if family.fp32_residual and dtype == torch.float16:
        keep_residual_in_float32(model)
    if where.adapter is not None:
        model = load_adapter(model, where.adapter)
    return model, processor


def for_training(model: nn.Module) -> nn.Module:
    """Training mode, with the gradient checkpointing that was chosen; returns the model."""
    state = state_of(model)
    if state.checkpointing is not None:
        set_checkpointing(model, state.checkpointing, by_default=state.checkpointing_by_default)
    return model.train()


def for_inference(model: nn.Module) -> nn.Module:
    """Evaluation mode, in which nothing is checkpointed; returns the model."""
    return model.eval()


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """Where weights lie, found out before any of them is read."""

    base: str
    """Folder or hub id of the whole model."""
    revision: str | None
    config: dict[str, Any]
    """Its config.json."""
    adapter: str | None
    """Folder of an adapter to put on it."""


def find_checkpoint(
    model_name: str | Path, revision: str | None = None, token: str | bool | None = None
) -> CheckpointPlace:
    """Read the config of a checkpoint, or of the base of an adapter.

    Raises:
        ValueError: if it is not there or cannot be read, with what to do.
    """
    folder = Path(model_name).expanduser()
    name = str(folder) if folder.is_dir() else str(model_name)
    adapter = _read_json(name, ADAPTER_CONFIG, revision, token) if folder.is_dir() else None
    config = None if adapter else _read_json(name, "config.json", revision, token)
    if config is not None:
        return CheckpointPlace(name, revision, config, None)
    if not folder.is_dir():
        adapter = _read_json(name, ADAPTER_CONFIG, revision, token)
    if adapter is None:
        raise ValueError(
            f"{name!r} has neither a config.json nor an {ADAPTER_CONFIG}, so it is no checkpoint; "
            "give the folder or hub id that holds them"
        )
    return _base_of_adapter(name, adapter, revision, token)


def load_processor(
    model_name: str | Path, revision: str | None = None, token: str | bool | None = None
) -> tuple[Any, int]:
    """The processor of a checkpoint, or of the base of an adapter; no weights are read.

    Returns:
        The processor, and the id that stands once for every image token of a prompt. The latter
        is the config's: Gemma 3's processor calls the token that opens a picture its own.

    Raises:
        ValueError: as ``find_checkpoint``, and for a processor that cannot be read or a family
            that is not supported.
    """
    from transformers import AutoConfig

    place = find_checkpoint(model_name, revision, token)
    family_module(str(place.config.get("model_type")))
    processor = _load_processor(place, token, trust_remote_code=False)
    config = AutoConfig.from_pretrained(place.base, revision=place.revision, token=token)
    return processor, int(config.image_token_id)


def choose_dtype(
    requested: torch.dtype | str | None, device: torch.device
) -> tuple[torch.dtype, str]:
    """The number format of the weights on a device, and the reason in words.

    Raises:
        ValueError: for a name that is no floating-point format.
    """
    if requested is not None:
        return _parse_dtype(requested), "as asked for"
    if device.type != "cuda":
        return torch.float32, f"no CUDA device, computing on {device.type}"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return dtype_for_capability(name, capability)


def dtype_for_capability(name: str, capability: tuple[int, int]) -> tuple[torch.dtype, str]:
    """The 16-bit format of a GPU, and the reason in words."""
    known = f"{name} (compute capability {capability[0]}.{capability[1]})"
    if capability >= NATIVE_BF16:
        return torch.bfloat16, f"{known} computes in it"
    return torch.float16, f"{known} has no bfloat16"


def keep_residual_in_float32(model: nn.Module) -> None:
    """Let the residual stream start in float32 on this instance, whose weights are float16.

    Each layer adds to it in float32, and matrix products run in float16 under autocast
    (``foveal.models.precision.autocast``), without which float16 weights would not fit float32
    inputs.
    """

    def widen(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if output.dtype != torch.float16:
            return output
        if not torch.is_autocast_enabled(output.device.type):
            raise ValueError(
                "this model's residual stream is too large for float16; run it inside "
                f"torch.autocast({output.device.type!r}, dtype=torch.float16), or load it with "
                "dtype=torch.float32"
            )
        return output.float()

    stock_model(model).get_input_embeddings().register_forward_hook(widen)
    state_of(model).record("residual", "the input embeddings' output is cast to float32")


def _load_weights(
    where: CheckpointPlace,
    family: Family,
    dtype: torch.dtype,
    device: torch.device,
    token: str | bool | None,
    options: dict[str, Any],
) -> Any:
    import transformers
    from safetensors import SafetensorError

    if "quantization_config" in where.config:
        raise ValueError(
            f"{where.base} is quantised already; give the 16-bit checkpoint that it was made from, "
            "with load_in_4bit=True or load_in_8bit=True"
        )
    model_class = getattr(transformers, family.model_class)
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                where.base,
                dtype=dtype,
                device_map=None if device.type == "cpu" else {"": device},
                revision=where.revision,
                token=token,
                output_loading_info=True,
                **options,
            )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the weights of {where.base} cannot be read ({_first_line(error)}); download or save "
            "the checkpoint again"
        ) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{where.base} lacks {len(missing)} weights of a {family.model_class}, {missing[0]!r} "
            "first; download or save the checkpoint again"
        )
    return model.eval()


def _load_processor(
    where: CheckpointPlace, token: str | bool | None, trust_remote_code: bool
) -> Any:
    from transformers import AutoProcessor

    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(
                where.base,
                revision=where.revision,
                token=token,
                trust_remote_code=trust_remote_code,
            )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{where.base} has no processor that can be read ({_first_line(error)}); save it there "
            "with processor.save_pretrained"
        ) from None
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _base_of_adapter(
    name: str, adapter: dict[str, Any], revision: str | None, token: str | bool | None
) -> CheckpointPlace:
    base = adapter.get("base_model_name_or_path")
    try:
        config = _read_json(str(base), "config.json", None, token)
        fault = "it has no config.json"
    except ValueError as error:
        config, fault = None, str(error)
    if config is None:
        raise ValueError(
            f"{name!r} is an adapter whose base {base!r} cannot be loaded: {fault}; if the base "
            f"has moved, correct base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    folder = name if Path(name).is_dir() else _download_adapter(name, revision, token)
    return CheckpointPlace(str(base), None, config, folder)


def _download_adapter(name: str, revision: str | None, token: str | bool | None) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, token=token, allow_patterns=["adapter_*"])


def _read_json(
    name: str, file: str, revision: str | None, token: str | bool | None
) -> dict[str, Any] | None:
    """A json file of a folder or a hub repository; None if it has no such file."""
    if Path(name).is_dir():
        path = Path(name) / file
        if not path.is_file():
            return None
    else:
        path = _from_hub(name, file, revision, token)
        if path is None:
            return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no valid json ({error}); download or save it again") from None


def _from_hub(name: str, file: str, revision: str | None, token: str | bool | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ValueError(
            f"there is no folder {name!r}; give a checkpoint folder or a hub id such as "
            "'Qwen/Qwen2.5-VL-7B-Instruct'"
        )
    try:
        return Path(hf_hub_download(name, file, revision=revision, token=token))
    except (EntryNotFoundError, OSError, ValueError) as error:
        absent = isinstance(error, EntryNotFoundError)
        if absent and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise ValueError(
            f"{name!r} is no folder here and cannot be read from the hub ({_first_line(error)}); "
            "check the spelling and the network, log in with `hf auth login` if the model is "
            "gated, or download it and give its folder"
        ) from None


def _parse_dtype(requested: torch.dtype | str) -> torch.dtype:
    known = {_name(dtype): dtype for dtype in (*HALF_TYPES, torch.float32)}
    name = _name(requested) if isinstance(requested, torch.dtype) else requested
    if name not in known:
        raise ValueError(f"dtype is {requested!r}; it must be one of {', '.join(known)}, or None")
    return known[name]


def _check_range(name: str, value: float | None, low: float, high: float | None) -> None:
    """``value`` must lie in [low, inf), or with an upper bound in (low, high]."""
    if value is None:
        return
    if high is None and value < low:
        raise ValueError(f"{name} is {value}; it must be at least {low}")
    if high is not None and not low < value <= high:
        raise ValueError(f"{name} is {value}; it must lie in ({low}, {high}]")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
