"""The decoder layer of training against the stock modules: values, gradients, memory, work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from foveal.kernels import train_fused
from foveal.models import training_layer as module
from foveal.models.decoder import Decoder
from foveal.models.training_layer import stock_layer, training_layer, why_not_fused
from foveal.testing import tiny
from tests.aot import Recorder
from tests.unit.test_models_fused_lora import QuantisedLinear


@pytest.fixture(autouse=True)
def fused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(module, "FUSED_ON", {"cpu"})


POLICIES: tuple[Any, ...] = (False, True, "offload", "selective")
N = 13


ADAPTED = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Case:
    """The last layer of an adapted tiny model and a stream to send through it."""

    def __init__(
        self,
        family: str,
        dtype: torch.dtype = torch.float32,
        tokens: int = N,
        device: str = "cpu",
        adapted: Sequence[str] = ADAPTED,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(
            r=4, lora_alpha=8, target_modules=list(adapted), init_lora_weights=False
        )
        self.model: Any = get_peft_model(tiny(family)[0], config)
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if "lora" in name else dtype)
        self.decoder = Decoder(self.model.to(device))
        self.layer = self.decoder.layers[-1]
        self.x = torch.randn(tokens, self.decoder.hidden).to(device, dtype).requires_grad_()
        axes = 1 if self.layer.rotary else 3
        cos, sin = self.decoder.rotary_at(torch.arange(tokens, device=device).expand(axes, -1))
        self.angles = cos[self.layer.rotary].to(dtype), sin[self.layer.rotary].to(dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.dtype == k.dtype == v.dtype
        groups = q.shape[1] // k.shape[1]
        q, k, v = (
            t.transpose(0, 1) for t in (q, *(t.repeat_interleave(groups, 1) for t in (k, v)))
        )
        out = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=self.decoder.scale
        )
        return out[0].transpose(0, 1)

    def forward(self, policy: Any) -> tuple[Tensor, ...]:
        given = (self.decoder, self.layer, self.x, self.angles, self.attend)
        return stock_layer(*given) if policy == "stock" else training_layer(*given, policy)

    def results(self, policy: Any) -> dict[str, Tensor]:
        """Outputs and gradients by name."""
        self.model.zero_grad()
        self.x.grad = None
        outputs = self.forward(policy)
        generator = torch.Generator().manual_seed(1)
        # The same numbers in every type.
        upstream = [torch.randn(y.shape, generator=generator).bfloat16().to(y) for y in outputs]
        torch.autograd.backward(outputs, upstream)
        found = {f"y{i}": y.detach() for i, y in enumerate(outputs)}
        named = {"x": self.x, **dict(self.model.named_parameters())}
        return found | {n: p.grad.clone() for n, p in named.items() if p.grad is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        near = 1e-5 * max(1.0, tensor.abs().max().item())
        torch.testing.assert_close(ours[name], tensor, atol=near, rtol=0, msg=name)


def train_norms(case: Case) -> None:
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_("lora" in name or "norm" in name)


def quantise(case: Case) -> None:
    for adapted in (case.layer.q, case.layer.gate, case.layer.down):
        adapted.base_layer.__class__ = QuantisedLinear


def train_base(case: Case) -> None:
    for adapted in (case.layer.v, case.layer.up, case.layer.o):
        adapted.base_layer.weight.requires_grad_()


STATES = (lambda case: None, train_norms, quantise, train_base)


@pytest.mark.parametrize("state", STATES, ids=lambda s: s.__name__)
def test_every_policy_gives_the_stock_layers_values_and_gradients(family, state):
    case = Case(family)
    state(case)
    assert why_not_fused(case.layer) is None
    expected = case.results("stock")
    assert ("norm" in " ".join(expected)) == (state is train_norms)
    for policy in POLICIES:
        assert_same(case.results(policy), expected)


def assert_near_the_truth(family: str, dtype: torch.dtype, device: str) -> None:
    """As near as the stock layer under autocast; the truth is float32 at the same weights."""
    exact, case = (Case(family, kind, 300, device) for kind in (torch.float32, dtype))
    for (_, wide), (_, half) in zip(
        exact.model.named_parameters(), case.model.named_parameters(), strict=True
    ):
        wide.data = half.data.float()
    exact.x.data = case.x.data.float()
    truth = exact.results("stock")
    with torch.autocast(device, dtype):
        stock = case.results("stock")
        found = [case.results(policy) for policy in POLICIES]
    for ours in found:
        assert ours.keys() == stock.keys()
        ratios = []
        for name, tensor in truth.items():
            assert ours[name].dtype == stock[name].dtype
            far, stock_far = ((each[name] - tensor).norm() for each in (ours, stock))
            assert far < 0.02 * tensor.norm(), name
            ratios.append(far / stock_far)
        assert max(ratios) < 1.3 and sum(ratios) / len(ratios) < 1.05


def test_in_16_bit_we_are_as_near_the_truth_as_the_stock_layer(family):
    assert_near_the_truth(family, torch.bfloat16, "cpu")


def test_a_norm_that_does_more_than_its_formula_is_called():
    case, calls = Case("qwen3_vl"), []
    norm = case.layer.q_norm
    norm.register_forward_hook(lambda *_: calls.append(1))
    assert why_not_fused(case.layer) == "a Qwen3VLTextRMSNorm has hooks"
    expected = case.results("stock")
    for policy, times in zip(POLICIES, (1, 2, 2, 2), strict=True):
        calls.clear()
        assert_same(case.results(policy), expected)
        assert len(calls) == times, policy
    norm._forward_hooks.clear()
    norm.__class__ = type("OtherNorm", (type(norm),), {})
    assert why_not_fused(case.layer) == "a OtherNorm has to be called as it is"


def kept(case: Case, policy: Any) -> int:
    """Elements that autograd keeps besides parameters and angles."""
    known = {t.untyped_storage().data_ptr() for t in (*case.model.parameters(), *case.angles)}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        results = case.forward(policy)
    del results
    return sum(t.untyped_storage().nbytes() // t.element_size() for t in found.values())


def test_a_policy_keeps_what_it_says_and_no_more(monkeypatch):
    """With kernels that do nothing, since on a CPU autograd keeps what the references keep."""
    from foveal.kernels import train_fused_triton

    for name in [n for n in vars(train_fused_triton) if n.endswith("_kernel")]:
        monkeypatch.setattr(train_fused_triton, name, Recorder(None))
    monkeypatch.setattr(train_fused, "_takes_kernel", lambda *_: True)
    case = Case("qwen2_5_vl")
    D, H, K, C = (case.decoder.hidden, case.decoder.heads, case.decoder.kv_heads,
                  case.decoder.width)  # fmt: skip
    inner = case.layer.gate.out_features

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v):
            out = torch.empty_like(q)
            ctx.save_for_backward(q, k, v, out)
            return out

        @staticmethod
        def backward(ctx, *grads):
            q, k, v, _ = ctx.saved_tensors
            return q, k, v

    case.attend = lambda q, k, v: Attention.apply(q, k, v)
    selective = 2 * D + 2 * H * C + 2 * K * C + 2
    assert kept(case, "selective") == N * selective
    assert kept(case, False) == N * (selective + 2 * D + 2 * inner)
    assert kept(case, True) == N * D


def test_products_are_computed_again_only_where_a_policy_says_so(family):
    case = Case(family)
    work = {}
    for policy in POLICIES:
        with FlopCounterMode(display=False) as counter:
            case.results(policy)
        counts = counter.get_flop_counts()["Global"]
        work[policy] = sum(n for op, n in counts.items() if "attention" not in str(op))
    layer, rank = case.layer, 4
    sizes = {n: getattr(layer, n) for n in ("q", "k", "v", "o", "gate", "up", "down")}
    flops = {
        n: 2 * N * (m.in_features * m.out_features)
        + (n != "k") * 2 * N * rank * (m.in_features + m.out_features)
        for n, m in sizes.items()
    }
    assert work["selective"] - work[False] == flops["gate"] + flops["up"]
    last = flops["down"] if family == "gemma3" else 0  # the norm behind it keeps its input
    assert work[True] - work[False] == sum(flops.values()) - flops["down"] + last
    assert work["offload"] == work[True]


def test_the_norm_that_is_not_kept_follows_no_later_tensor_of_the_same_memory():
    """Only tensors of its place, type and shape are taken for it."""
    case = Case("qwen2_5_vl")
    x_ND = case.x.detach()
    h_ND = torch.nn.functional.normalize(x_ND).requires_grad_()
    with module._renormed(case.layer.before_mlp, x_ND, h_ND, keep=False):
        y = (h_ND.view(-1) ** 2).sum() + (h_ND[:5] ** 2).sum()
    y.backward()
    expected = 2 * h_ND.detach()
    expected[:5] *= 2
    assert h_ND.grad is not None
    torch.testing.assert_close(h_ND.grad, expected)


def test_a_cpu_calls_the_modules_unless_less_is_to_be_kept(monkeypatch):
    monkeypatch.undo()
    called, case = [], Case("qwen2_5_vl")
    monkeypatch.setattr(module, "stock_layer", lambda *_: called.append("stock") or (case.x,) * 3)
    monkeypatch.setattr(
        module, "fused_layer", lambda *_, **__: called.append("fused") or (case.x,) * 3
    )
    for policy in POLICIES:
        case.forward(policy)
    assert called == ["stock", "stock", "stock", "fused"]


def test_without_gradients_nothing_is_checkpointed():
    case = Case("qwen2_5_vl")
    with torch.no_grad():
        found = case.forward(False)
    for ours, expected in zip(found, case.forward("stock"), strict=True):
        torch.testing.assert_close(ours, expected.detach(), atol=1e-5, rtol=1e-5)
