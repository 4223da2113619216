"""Adapted layers with a shared input against PEFT's own modules: values, gradients, memory."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from foveal.models.adapted_layers import adapters_unchanged
from foveal.models.fused_lora import gated_mlp, project

SIZES = {"q": (20, 24), "k": (20, 8), "v": (20, 8), "gate": (20, 36), "up": (20, 36),
         "down": (36, 20)}  # fmt: skip
ACTS = {"silu": nn.SiLU(), "gelu_pytorch_tanh": nn.GELU(approximate="tanh")}


class Layers:
    """PEFT's modules: "default" of rank 4 on all but k, "large" of rank 16 on q and down too."""

    def __init__(self, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        base = nn.ModuleDict(
            {name: nn.Linear(*size, bias=name in "qkv") for name, size in SIZES.items()}
        ).to(dtype)
        names = [name for name in SIZES if name != "k"]
        small = LoraConfig(r=4, lora_alpha=12, target_modules=names, init_lora_weights=False,
                           lora_dropout=dropout)  # fmt: skip
        large = LoraConfig(r=16, lora_alpha=9, target_modules=["q", "down"], use_rslora=True,
                           init_lora_weights=False)  # fmt: skip
        self.model: Any = get_peft_model(base, small)  # pyright: ignore[reportArgumentType]
        self.model.add_adapter("large", large)
        self.on("default", "large")

    def on(self, *names: str) -> None:
        self.model.base_model.set_adapter(list(names))

    def __getitem__(self, name: str) -> Any:
        return self.model.base_model.model[name]

    def all(self, names: str) -> list[Any]:
        return [self[name] for name in names.split()]

    def double(self) -> Layers:
        self.model.double()
        return self


def peft_mlp(x, gate, up, down, act):
    return down(ACTS[act](gate(x)) * up(x))


def inputs(dtype: torch.dtype = torch.float32, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*(shape or (11,)), 20, generator=generator).to(dtype).requires_grad_()


def results(layers: Layers, x: torch.Tensor, function: Any) -> dict[str, torch.Tensor]:
    """Outputs, and gradients of everything that is trained, by name."""
    layers.model.zero_grad()
    x.grad = None
    with torch.random.fork_rng():
        torch.manual_seed(5)
        outputs = function(x)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    pairs = [(y, dy) for y, dy in zip(outputs, upstream, strict=True) if y.requires_grad]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))
    found = {f"y{number}": y.detach() for number, y in enumerate(outputs)}
    named = {**dict(layers.model.named_parameters()), "x": x}
    return found | {n: p.grad.clone() for n, p in named.items() if p.grad is not None}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        largest = tensor.abs().max().item() if tensor.numel() else 0.0
        torch.testing.assert_close(ours[name], tensor, atol=1e-6 * max(1.0, largest), rtol=0)


def assert_acts_as_peft(layers: Layers, x: torch.Tensor) -> None:
    for names in ("q k v", "gate up", "q", "k"):
        modules = layers.all(names)
        assert_same(
            results(layers, x, lambda x, m=modules: project(x, m)),
            results(layers, x, lambda x, m=modules: [module(x) for module in m]),
        )
    mlp = layers.all("gate up down")
    for act in ACTS:
        theirs = results(layers, x, lambda x, act=act: peft_mlp(x, *mlp, act))
        for again in (False, True):
            ours = results(
                layers, x, lambda x, act=act, again=again: gated_mlp(x, *mlp, act, recompute=again)
            )
            assert_same(ours, theirs)


def one_adapter(layers):
    layers.on("large")  # gate and up are left without


def frozen_adapter(layers):
    for name, parameter in layers.model.named_parameters():
        if "large" in name or ".down.lora_A" in name:
            parameter.requires_grad_(False)


def only_first_factors(layers):
    for name, parameter in layers.model.named_parameters():
        parameter.requires_grad_("lora_A" in name)


def nothing_trained(layers):
    layers.model.requires_grad_(False)


def scaled(layers):
    layers["q"].scale_layer(0.3)


def one_off(layers):
    layers["v"].enable_adapters(False)
    layers["down"].enable_adapters(False)


def merged(layers):
    layers["q"].merge()
    layers["up"].merge()


def merged_and_off(layers):
    """PEFT takes the adapter out of the weight in the call; so the call has to be made."""
    merged(layers)
    layers["q"].enable_adapters(False)


def trained_base(layers):
    layers["gate"].get_base_layer().weight.requires_grad_()
    layers["down"].get_base_layer().weight.requires_grad_()
    layers["k"].weight.requires_grad_()


def bias_in_adapter(layers):
    for name in ("q", "gate", "down"):
        layers[name].lora_B["default"].bias = nn.Parameter(torch.ones(SIZES[name][1]))


def hooked(layers):
    layers["v"].register_forward_hook(lambda module, args, output: output * 2)
    layers["up"].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    layers["down"].get_base_layer().register_forward_hook(lambda module, args, y: y + 1)


def replaced(layers):
    for name in ("v", "up"):  # as wrappers that act on one instance do
        layers[name].forward = layers[name].get_base_layer().forward


class QuantisedLinear(nn.Linear):
    """Stands for bitsandbytes' classes, whose weight is no matrix."""

    def forward(self, input):
        return nn.functional.linear(input, self.weight.round(decimals=1), self.bias)


def quantised(layers):
    for name in ("q", "gate", "down"):
        layers[name].base_layer.__class__ = QuantisedLinear


STATES = (one_adapter, frozen_adapter, only_first_factors, nothing_trained, scaled, one_off,
          merged, merged_and_off, trained_base, bias_in_adapter, hooked, replaced,
          quantised)  # fmt: skip


@pytest.mark.parametrize("state", [lambda layers: None, *STATES], ids=lambda s: s.__name__)
def test_layers_act_as_pefts_whatever_their_state(state):
    layers = Layers()
    state(layers)
    assert_acts_as_peft(layers, inputs())


@pytest.mark.parametrize("shape", [(2, 5), (1, 0)], ids=["two leading axes", "no tokens"])
def test_inputs_of_any_leading_shape(shape):
    assert_acts_as_peft(Layers(), inputs(torch.float32, *shape))


def test_an_input_without_gradient_gets_none_and_the_factors_get_theirs():
    layers, x = Layers(), inputs().detach()
    assert_acts_as_peft(layers, x)
    with torch.no_grad():
        y = project(x, layers.all("q v"))[0]
    assert not y.requires_grad
    torch.testing.assert_close(y, layers["q"](x))


def test_dropout_is_not_left_out():
    layers = Layers(dropout=0.5)
    layers.model.train()
    assert_acts_as_peft(layers, inputs())


def test_results_that_the_loss_does_not_use():
    layers, x = Layers(), inputs()
    modules = layers.all("q k v")
    for used in (0, 1):
        ours = results(layers, x, lambda x, used=used: project(x, modules)[used])
        theirs = results(layers, x, lambda x, used=used: modules[used](x))
        assert_same(ours, theirs)


def test_an_unknown_activation_is_refused():
    layers = Layers()
    with pytest.raises(ValueError, match=r"act is 'relu'; .* silu, gelu_pytorch_tanh"):
        gated_mlp(inputs(), *layers.all("gate up down"), "relu")


@pytest.mark.parametrize("act", ACTS)
def test_gradients_are_those_of_finite_differences(act):
    layers = Layers().double()
    x = inputs(torch.float64, 3)
    parameters = [p for p in layers.model.parameters() if p.requires_grad]

    def pair_and_mlp(x, *_):
        mlp = layers.all("gate up down")
        found = [gated_mlp(x, *mlp, act, recompute=again) for again in (False, True)]
        return *project(x, layers.all("q k v")), *found

    assert torch.autograd.gradcheck(pair_and_mlp, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("wide", [True, False], ids=["float32 input", "16-bit input"])
def test_in_16_bit_we_are_as_near_the_truth_as_peft(wide):
    assert_as_near_as_peft(torch.bfloat16, "cpu", wide)


def assert_as_near_as_peft(dtype: torch.dtype, device: str, wide: bool) -> None:
    """Under autocast with float32 adapters; the truth is float64 at the same weights.

    Of one set of numbers either may be nearer by chance, so several are drawn.
    """
    layers, exact = Layers(dtype), Layers(dtype).double()
    for each in (layers, exact):
        each.model.to(device)
    mlp, mlp64 = (each.all("gate up down") for each in (layers, exact))
    qkv, qkv64 = (each.all("q k v") for each in (layers, exact))
    cases = {
        "q, k, v": (lambda x: project(x, qkv), lambda x: [module(x) for module in qkv],
                    lambda x: [module(x) for module in qkv64]),
        **{
            f"again: {again}": (
                lambda x, again=again: gated_mlp(x, *mlp, "silu", recompute=again),
                lambda x: peft_mlp(x, *mlp, "silu"), lambda x: peft_mlp(x, *mlp64, "silu"),
            )
            for again in (False, True)
        },
    }  # fmt: skip
    far, peft_far, size = Counter(), Counter(), Counter()
    for seed in range(8):
        x = draw_again(layers, exact, seed, dtype)
        x = (x.float() if wide else x).requires_grad_()
        x64 = x.detach().double().requires_grad_()
        for case, (ours, theirs, truth) in cases.items():
            with torch.autocast(device, dtype):
                found, peft = results(layers, x, ours), results(layers, x, theirs)
            right = results(exact, x64, truth)
            assert found.keys() == peft.keys() == right.keys()
            for name in right:
                assert found[name].dtype == peft[name].dtype
                key = case, name
                far[key] += (found[name] - right[name]).square().sum().item()
                peft_far[key] += (peft[name] - right[name]).square().sum().item()
                size[key] += right[name].square().sum().item()
    for key in size:
        assert far[key] <= 1.1 * peft_far[key] and far[key] < 0.02**2 * size[key], key


def draw_again(layers: Layers, exact: Layers, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """The same numbers into both models, as the type holds them; and an input."""
    generator = torch.Generator().manual_seed(seed)
    device = next(layers.model.parameters()).device
    with torch.no_grad():
        for pair in zip(layers.model.parameters(), exact.model.parameters(), strict=True):
            values = 0.2 * torch.randn(pair[0].shape, generator=generator)
            for parameter in pair:
                parameter.copy_(values.to(dtype))
    return torch.randn(256, 20, generator=generator).to(device, dtype)


def test_what_was_found_out_once_is_not_kept_for_another_time():
    """Layers are looked at once within a pass: between passes an adapter may be switched off."""
    layers = Layers()
    x = inputs()
    with adapters_unchanged():
        with_adapters = project(x, layers.all("q"))[0]
        assert torch.equal(project(x, layers.all("q"))[0], with_adapters)
    layers["q"].enable_adapters(False)
    with adapters_unchanged():
        found = project(x, layers.all("q"))[0]
    assert torch.equal(found, layers["q"].get_base_layer()(x))
    assert not torch.allclose(found, with_adapters)


def test_gradients_of_factors_are_summed_in_float32():
    """Rounded to 16 bit, as autograd's products are, hardly any value would need more."""
    layers, x = Layers(torch.bfloat16), inputs(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(layers, x, lambda x: project(x, layers.all("q v")))
    gradients = [tensor for name, tensor in found.items() if "lora" in name]
    assert len(gradients) == 6
    for gradient in gradients:
        assert (gradient != gradient.bfloat16().float()).float().mean() > 0.9


def kept_bytes(function: Any, weights: Any) -> tuple[int, list[tuple[int, ...]]]:
    """Distinct memory that autograd keeps, without the weights; and the shapes kept."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    del result
    return sum(t.untyped_storage().nbytes() for t in kept.values()), [*map(_shape, kept.values())]


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_is_kept_once_and_the_small_product_never(dtype):
    layers, x = Layers(dtype), inputs(dtype, 64)
    weights = list(layers.model.parameters())
    qkv, mlp = layers.all("q k v"), layers.all("gate up down")
    half = dtype == torch.bfloat16
    one = 64 * dtype.itemsize
    with torch.autocast("cpu", dtype) if half else contextlib.nullcontext():
        size, shapes = kept_bytes(lambda: project(x, qkv), weights)
        assert (size, shapes) == (20 * one, [(64, 20)])
        # PEFT keeps two copies of x for each of q (two adapters) and v in 16 bit, and x A'.
        assert kept_bytes(lambda: [module(x) for module in qkv], weights)[0] > 2 * size
        size, shapes = kept_bytes(lambda: gated_mlp(x, *mlp, "silu"), weights)
        assert (size, sorted(shapes)) == ((20 + 2 * 36) * one, [(64, 20), (64, 36), (64, 36)])
        assert kept_bytes(lambda: peft_mlp(x, *mlp, "silu"), weights)[0] > 2 * size
        size, shapes = kept_bytes(lambda: gated_mlp(x, *mlp, "silu", recompute=True), weights)
        assert (size, shapes) == (20 * one, [(64, 20)])
        # With nothing to train below it, x is not needed at all.
        nothing_trained(layers)
        assert kept_bytes(lambda: project(x, qkv), weights)[0] == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_under_checkpoint_the_gradients_stay(recompute):
    layers, x = Layers(), inputs()
    mlp, qkv = layers.all("gate up down"), layers.all("q k v")

    def block(x):
        q, k, v = project(x, qkv)
        h = x + torch.cat([q[:, :4] * 2, k, v], 1)
        return h + gated_mlp(h, *mlp, "silu", recompute=recompute)

    plain = results(layers, x, block)
    again = results(layers, x, lambda x: checkpoint(block, x, use_reentrant=False))
    assert_same(again, plain)


def test_a_factor_that_changes_before_the_backward_pass_is_noticed():
    layers, x = Layers(), inputs()
    y = project(x, layers.all("q v"))[0]
    with torch.no_grad():
        layers["q"].lora_B["default"].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_inside_autocast_computes_as_the_forward_pass_did():
    layers, x = Layers(), inputs()
    found = []
    for inside in (False, True):
        y = gated_mlp(x, *layers.all("gate up down"), "silu", recompute=True).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad(y, x)[0])
    assert torch.equal(*found)


def test_the_gradient_that_comes_in_is_not_written_to():
    layers, x = Layers(), inputs()
    dy_NF = torch.ones(11, 36)
    for recompute in (False, True):
        y = gated_mlp(x, *layers.all("gate up"), nn.Identity(), "silu", recompute=recompute)
        y.backward(dy_NF)
    assert torch.equal(dy_NF, torch.ones(11, 36))


def test_two_types_are_an_error_as_in_torch_and_not_converted():
    with pytest.raises(RuntimeError, match="dtype"):
        project(inputs(torch.bfloat16), Layers().all("q v"))
