"""The chunked head against full logits: values, gradients, work and memory."""

from __future__ import annotations

import contextlib
import importlib
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foveal.kernels import head_logprob, head_logprob_reference, head_policy_gradient
from foveal.kernels.head_logprob import BYTES_PER_CHUNK, _HeadLogprob, _Rule
from tests.aot import CAPABILITIES, SHARED_BYTES, Recorder
from tests.interpret import run_interpreted

# The package gives the module's name to the function.
MODULE = importlib.import_module("foveal.kernels.head_logprob")
KERNELS = ("block_stats_kernel", "row_stats_kernel", "gradient_kernel")
SOFTCAPS = pytest.mark.parametrize("softcap", [None, 3.0], ids=["plain", "softcap"])


def inputs(tokens=11, width=8, words=37, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(words, width, generator=generator, dtype=torch.float64)
    target_N = torch.randint(0, words, (tokens,), generator=generator)
    return hidden_ND.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_(), target_N


def upstream_of(tokens):
    return torch.randn(2, tokens, generator=torch.Generator().manual_seed(1))


def run(function, hidden, weight, target, upstream, **settings):
    """Values and gradients in hidden states and weight."""
    logprob, entropy = function(hidden, weight, target, **settings)
    assert logprob.dtype == entropy.dtype == torch.float32
    loss = (logprob * upstream[0] + entropy * upstream[1]).sum()
    wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    return logprob, entropy, *torch.autograd.grad(loss, wanted)


class Watch(TorchDispatchMode):
    """Counts matrix products, and the bytes of live tensors made inside from ``least`` bytes."""

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.least, self.made, self.most, self.products = least, [], 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm")
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.least:
                self.made.append(weakref.ref(tensor))
        alive = [tensor for made in self.made if (tensor := made()) is not None]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        self.most = max(self.most, sum(sizes.values()))
        return result


@SOFTCAPS
@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 100])
def test_pieces_give_the_values_and_gradients_of_full_logits(chunk_tokens, softcap):
    hidden, weight, target = inputs()
    settings = {"temperature": 0.6, "softcap": softcap}
    ours = run(head_logprob, *inputs(), upstream_of(11), chunk_tokens=chunk_tokens, **settings)
    full = run(head_logprob_reference, hidden, weight, target, upstream_of(11), **settings)
    for one, other in zip(ours, full, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@SOFTCAPS
@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)], ids=["logprob", "entropy", "both"])
def test_gradients_are_those_of_finite_differences(wanted, softcap):
    rule = _Rule(0.7, softcap, chunk=3, wide=torch.float64)

    def values(hidden, weight):
        # No gradient at all comes for the one that is left out.
        found = _HeadLogprob.apply(hidden, weight, target, rule)
        return tuple(found[number] for number in wanted)

    hidden, weight, target = inputs(tokens=5, width=4, words=7)
    assert torch.autograd.gradcheck(values, (hidden, weight))


@SOFTCAPS
def test_one_pass_gives_the_gradient_of_two(softcap):
    hidden, weight, target = inputs(dtype=torch.float32)
    upstream = upstream_of(11) * torch.tensor([[1.0], [0.0]])
    settings = {"temperature": 0.6, "softcap": softcap, "chunk_tokens": 4}
    logprob, entropy, dhidden, _ = run(head_logprob, hidden, weight, target, upstream, **settings)
    ours = head_policy_gradient(hidden, weight, target, upstream[0], **settings)
    assert not any(tensor.requires_grad for tensor in ours)
    for one, other in zip(ours, (logprob, entropy, dhidden), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mixed", [False, True], ids=["bfloat16", "autocast"])
def test_logits_of_16_bit_are_rounded_where_the_specification_rounds_them(mixed):
    """Float32 inputs under autocast (a residual kept wide) are 16 bit in the product."""
    hidden, weight, target = inputs(dtype=torch.float32 if mixed else torch.bfloat16)
    settings = {"temperature": 0.6}
    on = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
    with on:
        ours = run(
            head_logprob, hidden, weight, target, upstream_of(11), chunk_tokens=4, **settings
        )
        full = run(head_logprob_reference, hidden, weight, target, upstream_of(11), **settings)
        once = head_policy_gradient(hidden, weight, target, upstream_of(11)[0], **settings)
    for one, other in zip((*ours[:2], *once[:2]), (*full[:2], *full[:2]), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
    # Products sum in another order; an eighth bit may differ.
    for one, other in zip(ours[2:], full[2:], strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=2e-2, rtol=1e-2)
    assert once[2].dtype == hidden.dtype


def test_backward_inside_autocast_computes_the_logits_of_the_forward_pass():
    hidden, weight, target = inputs(dtype=torch.float32)
    found = []
    for inside in (False, True):
        logprob, entropy = head_logprob(hidden, weight, target)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad((logprob + entropy).sum(), (hidden, weight)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_words_of_probability_zero_have_no_part_in_values_or_gradients():
    """Float16 products overflow to -inf; the textbook formula's entropy gradient is nan then."""
    hidden, weight, target = inputs(dtype=torch.float16)
    with torch.no_grad():
        hidden[:, 0] = 300
        weight[:, 0] = 0
        few = weight[:30].clone().requires_grad_()
        weight[30:, 0] = -300
    target = target.clamp(max=29)
    assert torch.nn.functional.linear(hidden, weight)[:, 30:].isneginf().all()
    upstream = upstream_of(11)
    ours = run(head_logprob, hidden, weight, target, upstream)
    *expected, dweight = run(head_logprob_reference, hidden, few, target, upstream)
    for one, other in zip(ours[:3], expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(ours[3][:30], dweight, atol=2e-1, rtol=2e-3)
    assert not ours[3][30:].any()
    once = head_policy_gradient(hidden, weight, target, upstream[0])
    assert once[2].isfinite().all()
    impossible, _ = head_logprob(hidden, weight, torch.full_like(target, 36))
    assert impossible.isneginf().all()


def test_a_tied_weight_gets_both_of_its_gradients():
    _, weight, target = inputs(dtype=torch.float32)
    grads = []
    for function in (head_logprob, head_logprob_reference):
        logprob, entropy = function(weight[target].tanh(), weight, target.flip(0))
        grads.append(torch.autograd.grad((logprob + 0.1 * entropy).sum(), weight)[0])
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_a_frozen_head_pays_three_products_and_one_pass_pays_two():
    hidden, weight, target = inputs(tokens=12)
    work = []
    for trained in (True, False):
        weight.requires_grad_(trained)
        with Watch() as watch:
            run(head_logprob, hidden, weight, target, upstream_of(12), chunk_tokens=4)
        work.append(watch.products)
    with Watch() as watch:
        head_policy_gradient(hidden, weight, target, upstream_of(12)[0], chunk_tokens=4)
    pieces = 3
    assert [*work, watch.products] == [4 * pieces, 3 * pieces, 2 * pieces]


@SOFTCAPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_than_two_pieces_of_logits_exist_at_once(dtype, softcap):
    hidden, weight, target = inputs(tokens=40, words=5001, dtype=dtype)
    weight.requires_grad_(False)
    piece = 8 * 5001 * 4
    settings = {"softcap": softcap, "temperature": 0.7, "chunk_tokens": 8}
    with Watch(least=piece // 2) as watch:
        run(head_logprob, hidden, weight, target, upstream_of(40), **settings)
    assert piece <= watch.most <= 2 * piece
    with Watch(least=piece // 2) as watch:
        head_policy_gradient(hidden, weight, target, upstream_of(40)[0], **settings)
    assert piece <= watch.most <= 2 * piece
    with Watch(least=piece // 2) as watch:
        head_logprob_reference(hidden, weight, target)
    assert watch.most > 8 * piece, "the watch would see full logits"


def test_uniform_logits_give_log_v_by_hand():
    hidden = torch.zeros(2, 3)
    logprob, entropy = head_logprob(hidden, torch.ones(5, 3), torch.tensor([0, 4]))
    assert logprob.tolist() == pytest.approx([-math.log(5)] * 2)
    assert entropy.tolist() == pytest.approx([math.log(5)] * 2)


def test_no_tokens_are_no_error():
    hidden, weight, target = inputs(tokens=0, dtype=torch.float32)
    *values, dhidden, dweight = run(head_logprob, hidden, weight, target, upstream_of(0))
    assert [len(value) for value in values] == [0, 0] and dhidden.shape == (0, 8)
    assert not dweight.any()


def test_unusable_settings_are_refused_with_their_value():
    hidden, weight, target = inputs()
    with pytest.raises(ValueError, match="temperature is 0"):
        head_logprob(hidden, weight, target, temperature=0)
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        head_logprob(hidden, weight, target, chunk_tokens=0)
    with pytest.raises(TypeError, match=r"float32 and the head's weight is torch\.float64"):
        head_policy_gradient(hidden.float(), weight, target, torch.ones(11))


def test_triton_kernels_equal_the_torch_path():
    pytest.importorskip("triton")
    run_interpreted("tests.unit.triton_head_cases")


class Count:
    """Stands where a kernel stands, counts its launches and keeps none of their tensors."""

    def __init__(self, kernel) -> None:
        self.launches = 0

    def __getitem__(self, grid):
        self.launches += 1
        return lambda *_, **__: None


def stand_ins(monkeypatch, kind):
    """In the kernels' places, which are chosen whatever the device."""
    pytest.importorskip("triton")
    from foveal.kernels import head_logprob_triton

    monkeypatch.setattr(MODULE, "_takes_kernel", lambda *_: True)
    found = [kind(getattr(head_logprob_triton, name)) for name in KERNELS]
    for name, each in zip(KERNELS, found, strict=True):
        monkeypatch.setattr(head_logprob_triton, name, each)
    return found


@SOFTCAPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_need_one_piece_of_logits_and_no_more_products(dtype, softcap, monkeypatch):
    counts = stand_ins(monkeypatch, Count)
    hidden, weight, target = inputs(tokens=40, width=2, words=5001, dtype=dtype)
    weight.requires_grad_(False)
    settings = {"softcap": softcap, "temperature": 0.7, "chunk_tokens": 8}
    piece, pieces = 8 * 5001 * dtype.itemsize, 5
    with Watch(least=piece // 2) as watch:
        run(head_logprob, hidden, weight, target, upstream_of(40), **settings)
    assert watch.products == 3 * pieces and watch.most == piece
    with Watch(least=piece // 2) as watch:
        head_policy_gradient(hidden, weight, target, upstream_of(40)[0], **settings)
    assert watch.products == 2 * pieces and watch.most == piece
    assert [count.launches for count in counts] == [2 * pieces] * 3


def test_a_piece_for_kernels_fills_the_budget_with_whole_tiles(monkeypatch):
    monkeypatch.setattr(MODULE, "_takes_kernel", lambda *_: True)
    for dtype, words in ((torch.bfloat16, 152_064), (torch.float32, 262_208)):
        tokens = MODULE._most_tokens(torch.empty(words, 1, device="meta"), dtype)
        row = words * dtype.itemsize
        assert tokens % 128 == 0
        assert tokens * row <= BYTES_PER_CHUNK < (tokens + 128) * row
    assert MODULE._most_tokens(torch.empty(1 << 22, 1, device="meta"), torch.float32) == 24


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_compile_and_fit_on_every_card(capability, monkeypatch):
    recorders = stand_ins(monkeypatch, Recorder)
    from foveal.kernels.head_logprob_triton import logit_stats, logits_to_gradient_

    def meta(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    half = torch.float16 if capability == 75 else torch.bfloat16
    target_N, g_N = meta(1280, dtype=torch.int64), meta(1280, dtype=torch.float32)
    # Qwen2.5-VL's words and Gemma 3's, with its cap; an odd number, as of a resized head.
    for words, dtype, softcap in ((152_064, half, None), (152_064, torch.float32, None),
                                  (262_208, half, 30.0), (50_257, half, None)):  # fmt: skip
        logits_NV = meta(1280, words, dtype=dtype)
        settings = {"temperature": 0.7, "softcap": softcap}
        _, *stats = logit_stats(logits_NV, target_N, **settings)
        for h_N in (None, g_N):
            logits_to_gradient_(logits_NV, target_N, (*stats,), g_N, h_N, **settings)
    variants = {launch.variant: launch for r in recorders for launch in r.launches}
    assert len(variants) >= 4 + 2 + 8
    for launch in variants.values():
        compiled = launch.compile_for(capability)
        assert compiled.metadata.shared <= SHARED_BYTES[capability]
        ptx = compiled.asm["ptx"]
        assert f".target sm_{capability}" in ptx
        if launch.args[0].shape[1] % 16 == 0:
            assert "ld.global.v4" in ptx  # 16 bytes
