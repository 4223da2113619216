"""Low-rank adapters (arXiv:2106.09685) through PEFT: which layers, from which start, from which
folder.

The layers are named by one regular expression built from the family's facts. It is stored with
the adapter, so a saved adapter says by itself what it belongs to.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.models.checkpointing import parse_checkpointing, set_checkpointing
from foveal.models.family import Family, family_of, stock_model
from foveal.models.merge import bind_merged_saving
from foveal.models.state import refuse_unknown, say, state_of

ADAPTER_CONFIG = "adapter_config.json"
# Gemma 3 takes the tower's last hidden states; the pooling head after them is dead weight.
_UNUSED_PATHS = ("model.vision_tower.head",)
_NO_DROPOUT = (
    "the completions of a prompt share one pass through it, so each pass would see another "
    "dropout mask"
)


def get_peft_model(
    model: nn.Module,
    r: int = 16,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    bias: str = "none",
    finetune_vision_layers: bool = True,
    finetune_language_layers: bool = True,
    finetune_attention_modules: bool = True,
    finetune_mlp_modules: bool = True,
    target_modules: str | Sequence[str] | None = None,
    use_gradient_checkpointing: bool | str | None = None,
    random_state: int = 3407,
    use_rslora: bool = False,
    loftq_config: Any = None,
    max_seq_length: int | None = None,
    modules_to_save: Any = None,
    **unknown: Any,
) -> Any:
    """Freeze a model and add a trainable adapter in float32; prints what is trained.

    Embeddings and head are never adapted.

    Args:
        model: stock model of a supported family.
        r: rank.
        lora_alpha: the adapter is scaled by ``lora_alpha / r``.
        lora_dropout: 0; see the error.
        bias: "none".
        finetune_vision_layers: adapt tower and projector.
        finetune_language_layers: adapt the decoder.
        finetune_attention_modules: adapt attention, in either.
        finetune_mlp_modules: adapt feed-forward blocks, in either.
        target_modules: in place of the last two flags: names of linear layers, such as
            ``["q_proj", "v_proj"]``; a regular expression for whole paths stands in place of all
            four; None and "all-linear" leave it to the flags.
        use_gradient_checkpointing: True, False, "selective", "offload" ("unsloth" means the
            same), "captured" or "auto", as of ``set_checkpointing``; None is what
            ``from_pretrained`` was given, or else what ``GRPOConfig`` says, and True without one.
        random_state: seed of the adapter's start; the global random state stays as it was.
        use_rslora: scale by ``lora_alpha / sqrt(r)`` instead (arXiv:2312.03732).
        loftq_config: None; it would change the base weights.
        max_seq_length: most tokens of prompt and completion, if it is to change.
        modules_to_save: None; layers are trained through adapters only.

    Returns:
        The PEFT model around the same ``model``, which has the adapter in it from now on.

    Raises:
        ValueError: if nothing, or an argument's layer, would be trained; for a value that is not
            supported; if the model has an adapter already.
        TypeError: for an unknown argument.
    """
    refuse_unknown(get_peft_model, unknown)
    _refuse_unsupported(lora_dropout, bias, loftq_config, modules_to_save)
    if r < 1:
        raise ValueError(f"r is {r}; the rank of an adapter is at least 1")
    if hasattr(model, "peft_config"):
        raise ValueError(
            "the model has an adapter already, which can be trained as it is; leave "
            "get_peft_model out, or start from the stock model"
        )
    state = state_of(model)
    by_default = use_gradient_checkpointing is None and state.checkpointing is None
    if use_gradient_checkpointing is None:
        use_gradient_checkpointing = True if state.checkpointing is None else state.checkpointing
    policy = parse_checkpointing(use_gradient_checkpointing)
    pattern = target_pattern(
        model,
        target_modules,
        vision=finetune_vision_layers,
        language=finetune_language_layers,
        attention=finetune_attention_modules,
        mlp=finetune_mlp_modules,
    )
    import peft

    config = peft.LoraConfig(
        r=r,
        # PEFT's annotation says int; the scale lora_alpha / r takes any number.
        lora_alpha=lora_alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0,
        bias="none",
        target_modules=pattern,
        use_rslora=use_rslora,
    )
    with _seeded(random_state, stock_model(model).device):
        adapted = _wrap(model, lambda stock: peft.get_peft_model(stock, config))
    if max_seq_length is not None:
        state.max_seq_length = max_seq_length
    set_checkpointing(adapted, policy, by_default=by_default)
    return adapted


def load_adapter(model: nn.Module, folder: str | Path) -> Any:
    """Put a saved adapter on a model, trainable.

    Args:
        model: a stock model, which gets the adapter; or an adapted one, whose adapter takes the
            saved values.
        folder: where ``model.save_pretrained`` wrote.

    Returns:
        The PEFT model.

    Raises:
        ValueError: if there is no adapter in the folder, or it does not fit the model.
    """
    import peft

    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"there is no {ADAPTER_CONFIG} in {str(folder)!r}; give the folder that "
            "model.save_pretrained wrote"
        )
    config: Any = peft.PeftConfig.from_pretrained(str(folder))
    _check_saved_config(config, folder)
    if isinstance(model, peft.PeftModel):
        _load_values(model, config, folder)
        return model
    config.inference_mode = False

    def wrap(stock: nn.Module) -> Any:
        if config.lora_dropout:
            line = f"lora_dropout {config.lora_dropout} of {folder} is set to 0: {_NO_DROPOUT}"
            config.lora_dropout = 0.0
            state_of(stock).record("dropout", line)
            say(line)
        _check_fit(stock, config, folder)
        return peft.PeftModel.from_pretrained(stock, str(folder), config=config, is_trainable=True)

    return _wrap(model, wrap)


def target_pattern(
    model: nn.Module,
    target_modules: str | Sequence[str] | None = None,
    *,
    vision: bool,
    language: bool,
    attention: bool,
    mlp: bool,
) -> str:
    """The regular expression of the linear layers to adapt, matched against whole paths.

    Raises:
        ValueError: if it, or one of the names asked for, matches nothing; or if a regular
            expression of the user's matches something else than a linear layer.
    """
    family = family_of(model).FAMILY
    if isinstance(target_modules, str) and target_modules != "all-linear":
        _check_users_pattern(model, family, target_modules)
        return target_modules
    paths = [*(family.vision_paths if vision else ())]
    paths += [family.language_path] if language else []
    if not paths:
        raise ValueError(
            "finetune_vision_layers and finetune_language_layers are both False, so nothing would "
            "be trained; set one of them to True"
        )
    if target_modules is None or target_modules == "all-linear":
        names = [*(family.attention_linears if attention else ())]
        names += family.mlp_linears if mlp else ()
        if not names:
            raise ValueError(
                "finetune_attention_modules and finetune_mlp_modules are both False, so nothing "
                "would be trained; set one of them to True"
            )
        return _pattern(paths, names)
    _check_names(model, paths, target_modules)
    return _pattern(paths, target_modules)


def adapted_layers(model: nn.Module) -> list[str]:
    """Paths of the layers that have an adapter, as in the stock model."""
    from peft.tuners.lora import LoraLayer

    return [
        path for path, layer in stock_model(model).named_modules() if isinstance(layer, LoraLayer)
    ]


def _refuse_unsupported(
    lora_dropout: float, bias: str, loftq_config: Any, modules_to_save: Any
) -> None:
    if lora_dropout:
        raise ValueError(f"lora_dropout is {lora_dropout}; it must be 0: {_NO_DROPOUT}")
    if bias != "none":
        raise ValueError(
            f"bias is {bias!r}; it must be 'none': trained biases would stay in the reference "
            "policy, which is the model with its adapter off"
        )
    if loftq_config:
        raise ValueError(
            f"loftq_config is {loftq_config!r}; it must be None: LoftQ changes the base weights"
        )
    if modules_to_save:
        raise ValueError(
            f"modules_to_save is {modules_to_save!r}; it must be None: layers are trained through "
            "adapters only (name linear layers in target_modules)"
        )


def _check_saved_config(config: Any, folder: Path) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    reasons = [f"its type is {kind}"] if kind != "LORA" else []
    if kind == "LORA":
        for name in ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters"):
            if getattr(config, name, None):
                reasons.append(f"it has {name}={getattr(config, name)!r}")
        if config.bias != "none":
            reasons.append(f"it has bias={config.bias!r}")
    if reasons:
        raise ValueError(
            f"the adapter in {folder} is not supported: {' and '.join(reasons)}; train a plain "
            "LoRA adapter with get_peft_model"
        )


def _check_fit(stock: nn.Module, config: Any, folder: Path) -> None:
    """Each saved tensor must find its layer, and the widths must agree."""
    from peft.utils import load_peft_weights

    modules = dict(stock.named_modules())
    for key, tensor in load_peft_weights(str(folder), device="cpu").items():
        path, _, kind = key.removeprefix("base_model.model.").rpartition(".lora_")
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"the adapter in {folder} does not fit: it adapts {path!r}, which is no linear "
                f"layer of this {state_of(stock).family} model; load it on the model it was "
                f"trained on ({config.base_model_name_or_path})"
            )
        width, side = (layer.in_features, 1) if kind.startswith("A") else (layer.out_features, 0)
        if tensor.shape[side] != width:
            raise ValueError(
                f"the adapter in {folder} does not fit: at {path!r} it is {tensor.shape[side]} "
                f"wide where this model has {width}; load it on the model it was trained on "
                f"({config.base_model_name_or_path})"
            )


def _load_values(model: Any, saved: Any, folder: Path) -> None:
    """Copy saved values into the default adapter, if both are of one kind."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    live = model.peft_config["default"]
    for name in ("r", "lora_alpha", "use_rslora"):
        ours, theirs = getattr(live, name), getattr(saved, name)
        if ours != theirs:
            raise ValueError(
                f"the adapter in {folder} has {name}={theirs}, the model's has {name}={ours}; "
                "load it on a stock model, or call get_peft_model with the saved value"
            )
    values = load_peft_weights(str(folder), device="cpu")
    expected = get_peft_model_state_dict(model)
    differing = sorted(values.keys() ^ expected.keys()) or [
        key for key in sorted(values) if values[key].shape != expected[key].shape
    ]
    if differing:
        raise ValueError(
            f"the adapter in {folder} and the model's adapt different layers: {len(differing)} "
            f"tensors do not match, {differing[0]!r} first; load it on a stock model, or call "
            "get_peft_model with the flags that it was made with"
        )
    set_peft_model_state_dict(model, values)


def _wrap(model: nn.Module, wrap: Callable[[nn.Module], Any]) -> Any:
    """PEFT around a stock model, with what belongs to every adapted model."""
    state = state_of(model)
    chosen = state.checkpointing
    # PEFT answers checkpointed layers by hooking the embeddings and, through them, the tower.
    set_checkpointing(model, False)
    try:
        with warnings.catch_warnings():
            # PEFT asks for a property by its old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = wrap(model)
    finally:
        state.checkpointing = chosen
        if chosen is not None:
            set_checkpointing(model, chosen)
    bind_merged_saving(adapted)
    line = _summary(adapted)
    state.record("adapter", line)
    say(line)
    return adapted


def _summary(adapted: Any) -> str:
    layers = adapted_layers(adapted)
    decoder = sum(path.startswith(f"{family_of(adapted).FAMILY.language_path}.") for path in layers)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    total = sum(p.numel() for p in adapted.parameters())
    return (
        f"LoRA r={adapted.peft_config['default'].r} trains {trained:,} parameters of {total:,} in "
        f"{len(layers)} linear layers: language {decoder}, vision {len(layers) - decoder}"
    )


def _pattern(paths: Sequence[str], names: Sequence[str]) -> str:
    unused = "|".join(re.escape(path) for path in _UNUSED_PATHS)
    inside = "|".join(re.escape(path) for path in paths)
    linears = "|".join(re.escape(name) for name in names)
    return rf"(?!(?:{unused})\.)(?:{inside})\.(?:.*\.)?(?:{linears})"


def _linear_paths(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Linear layers below ``paths``, quantised ones included, without the unused ones."""
    inside, outside = tuple(f"{p}." for p in paths), tuple(f"{p}." for p in _UNUSED_PATHS)
    return [
        path
        for path, module in stock_model(model).named_modules()
        if isinstance(module, nn.Linear)
        and path.startswith(inside)
        and not path.startswith(outside)
    ]


def _check_names(model: nn.Module, paths: Sequence[str], names: Sequence[str]) -> None:
    if not names:
        raise ValueError("target_modules is empty; name linear layers, or leave it out")
    linear = _linear_paths(model, paths)
    for name in names:
        if not any(re.fullmatch(_pattern(paths, [name]), path) for path in linear):
            endings = sorted({path.rpartition(".")[2] for path in linear})
            raise ValueError(
                f"target_modules has {name!r}, which matches no linear layer in "
                f"{', '.join(paths)}; there are {', '.join(endings)}"
            )


def _check_users_pattern(model: nn.Module, family: Family, pattern: str) -> None:
    allowed = set(_linear_paths(model, [*family.vision_paths, family.language_path]))
    paths = [path for path, _ in stock_model(model).named_modules()]
    matched = [path for path in paths if re.fullmatch(pattern, path)]
    others = [path for path in matched if path not in allowed]
    if others or not matched:
        what = f"matches {others[0]!r}, which has none" if others else "matches nothing"
        raise ValueError(
            f"target_modules {pattern!r} {what}; a regular expression must match whole paths of "
            f"linear layers, such as {family.language_path + '.layers.0.self_attn.q_proj'!r}"
        )


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
