"""The CUDA kernels of attention to a shared prompt against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveal.kernels import prefix_attention, prefix_attention_reference
from foveal.kernels.part_kernels import EfficientKernel, FlashKernel
from foveal.kernels.prefix_attention import joined_attention
from foveal.kernels.varlen_attention import choose_kernel
from foveal.models.checkpointing import set_checkpointing
from foveal.train import group_pass, plain_pass
from tests.parity.our_side import our_model
from tests.parity.test_group_pass import assert_same_update, sampled_rows, settings_of, update

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_tf32")]

BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
PROMPT, LENGTHS = 333, [200, 1, 65, 128]
GROUPS = {"one prompt": (), "two prompts": ((133, 3), (200, 1))}


def relative(ours, expected):
    return ((ours.double() - expected).norm() / expected.norm()).item()


def inputs(dtype, width) -> tuple[torch.Tensor, list[Any]]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(sum(LENGTHS), 6), *[(n, 2) for n in (sum(LENGTHS), PROMPT) for _ in "kv"]]
    drawn = [torch.randn(*size, width, generator=generator) for size in (sizes[0], *sizes)]
    weight, *tensors = (x.to("cuda", dtype) for x in drawn)
    return weight, [x.requires_grad_() for x in tensors]


def assert_equal_to_the_reference(attend, dtype, width, window, groups=()):
    weight, tensors = inputs(dtype, width)
    out = attend(*tensors, LENGTHS, groups, scale=0.2, window=window)
    grads = torch.autograd.grad(out, tensors, weight)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    q, own_k, own_v, prefix_k, prefix_v = exact
    expected = prefix_attention_reference(
        q, own_k, own_v, prefix_k, prefix_v, LENGTHS, groups, scale=0.2, window=window
    )
    expected_grads = torch.autograd.grad(expected, exact, weight.double())
    assert out.dtype == dtype
    pairs = zip((out, *grads), (expected, *expected_grads), strict=True)
    errors = [relative(*pair) for pair in pairs]
    assert max(errors) < BOUNDS[dtype], errors


@pytest.mark.parametrize("window", [0, 600, 400, 100], ids="window{}".format)
@pytest.mark.parametrize("width", [64, 128, 256], ids="width{}".format)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_output_and_five_gradients(dtype, width, window, groups):
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    assert choose_kernel(inputs(dtype, width)[1][0]) != "reference"
    assert_equal_to_the_reference(prefix_attention, dtype, width, window, groups)


@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("kernel", [FlashKernel(), EfficientKernel()], ids=["flash", "efficient"])
def test_each_kernel_in_float16_whichever_is_chosen(kernel, window, groups):
    if isinstance(kernel, FlashKernel) and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("flash attention needs compute capability 8.0")

    def attend(*args, **options):
        return joined_attention(kernel, *args, **options)

    assert_equal_to_the_reference(attend, torch.float16, 128, window, groups)


@pytest.mark.parametrize("tokens_at_once", [6, None], ids=["cut", "together"])
@pytest.mark.parametrize("checkpointing", [False, "offload"])
def test_the_pass_in_float32_equals_the_plain_pass(family, checkpointing, tokens_at_once):
    model, processor = our_model(family, vision=True)
    model.cuda()
    data = sampled_rows(model, processor)
    expected = update(plain_pass, model, data, settings_of())
    set_checkpointing(model, checkpointing)
    ours = update(group_pass, model, data, settings_of(tokens_at_once=tokens_at_once))
    assert_same_update(ours, expected, tolerance=1e-4)


def test_the_pass_in_bfloat16_points_where_float32_does(family):
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    model, processor = our_model(family, vision=False)
    model.cuda()
    data = sampled_rows(model, processor)
    exact = update(plain_pass, model, data, settings_of())[0]
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    cosines = []
    for module in (plain_pass, group_pass):
        grads = update(module, model, data, settings_of())[0]
        a, b = (torch.cat([g[n].flatten().double() for n in exact]) for g in (grads, exact))
        cosines.append(torch.cosine_similarity(a, b, dim=0).item())
    # The tiny model is rough: what counts is that sharing the prompt costs nothing.
    assert 1 - cosines[1] < 2 * (1 - cosines[0]) + 1e-3, cosines
