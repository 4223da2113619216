"""The memory plan: its counts against autograd, its sums against a card, its choices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal.kernels import train_fused
from foveal.memory.layer_bytes import (
    ALL_TRAINED,
    ModelSizes,
    Tensors,
    TrainedFactors,
    kept_tensors,
    token_bytes,
    working_tensors,
)
from foveal.memory.planner import (
    FASTEST_FIRST,
    GIB,
    Piece,
    PromptPass,
    choose,
    free_bytes,
    predict,
)
from foveal.models import training_layer
from foveal.models.training_stack import _masked_attention
from foveal.train.planning import sizes_of
from tests.aot import Recorder
from tests.unit.test_models_training_layer import Case, N, kept, quantise

QWEN_7B = ModelSizes(
    layers=28, hidden=3584, inner=18944, heads=28, kv_heads=4, width=128, vocabulary=152064,
    copied_parameters=40_370_176, missing_gradients=4 * 40_370_176,
)  # fmt: skip
NOWHERE = TrainedFactors(attention=False, gated=False, down=False)
IN_FIRST = 40_370_176 // 28
MEASURED = {
    "qwen2.5-vl-7b, 4 x 8, 1024 tokens": QWEN_7B,
    "qwen2.5-vl-7b, 4 x 8, 1024 tokens, no LoRA": replace(
        QWEN_7B, trained=(ALL_TRAINED, *[NOWHERE] * 27), copied_parameters=IN_FIRST,
        missing_gradients=4 * IN_FIRST,
    ),
}  # fmt: skip
ROWS = Piece(((1010, (1024,) * 8),))


class Attention(torch.autograd.Function):
    """Keeps what the kernels keep."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[1], len(q)))
        return out


@pytest.fixture
def no_kernels(monkeypatch):
    """Kernels that do nothing, since on a CPU autograd keeps what the references keep."""
    from foveal.kernels import train_fused_triton

    for name in [n for n in vars(train_fused_triton) if n.endswith("_kernel")]:
        monkeypatch.setattr(train_fused_triton, name, Recorder(None))
    monkeypatch.setattr(train_fused, "_takes_kernel", lambda *_: True)
    monkeypatch.setattr(training_layer, "FUSED_ON", {"cpu"})


def elements(tensors: Tensors) -> int:
    return sum(count for count, _ in tensors.values())


@pytest.mark.parametrize("policy", FASTEST_FIRST, ids=str)
def test_a_tensor_that_a_layer_keeps_is_missing_in_the_plan(family, policy, no_kernels):
    case = Case(family)
    case.attend = lambda q, k, v: Attention.apply(q, k, v)  # pyright: ignore
    sizes = sizes_of(case.model)
    assert kept(case, policy) == N * elements(kept_tensors(sizes, policy))


@pytest.mark.parametrize("policy", FASTEST_FIRST, ids=str)
@pytest.mark.parametrize("adapted", [["q_proj", "v_proj"], ["gate_proj", "down_proj"], ["o_proj"]])
def test_inputs_that_no_adapter_takes_are_planned_all_the_same(policy, adapted, no_kernels):
    case = Case("qwen2_5_vl", adapted=adapted)
    case.attend = lambda q, k, v: Attention.apply(q, k, v)  # pyright: ignore
    sizes = sizes_of(case.model)
    trained = sizes.trained_in(sizes.layers - 1)
    assert trained == TrainedFactors(
        attention="q_proj" in adapted, gated="gate_proj" in adapted, down="down_proj" in adapted
    )
    assert kept(case, policy) == N * elements(kept_tensors(sizes, policy, trained=trained))


def test_the_product_inside_is_computed_again_for_the_factors_of_down_alone():
    frozen = working_tensors(QWEN_7B, True, trained=ALL_TRAINED._replace(down=False))
    whole = working_tensors(QWEN_7B, True)
    assert token_bytes(QWEN_7B, whole) - token_bytes(QWEN_7B, frozen) == 18944 * 2


def test_the_layer_at_which_most_is_held_need_not_be_the_last():
    """Adapters in the lowest layers: those above keep less and compute less again."""
    first = replace(QWEN_7B, trained=(ALL_TRAINED, *[NOWHERE] * 27))
    last = replace(QWEN_7B, trained=(*[NOWHERE] * 27, ALL_TRAINED))
    alone = [PromptPass((1010,), (ROWS,))]
    at_first, at_last = (predict(sizes, alone, True).terms for sizes in (first, last))
    fed = ROWS.fed
    assert at_last["kept of completions"] == fed * 28 * 3584 * 2
    work = token_bytes(QWEN_7B, working_tensors(QWEN_7B, True))
    assert at_last["a layer at work"] == fed * work > at_first["a layer at work"]
    some = replace(QWEN_7B, trained=(*[NOWHERE] * 26, ALL_TRAINED, NOWHERE))
    terms = predict(some, alone, True).terms
    assert terms["kept of completions"] == fed * 27 * 3584 * 2
    assert terms["a layer at work"] == fed * work


@pytest.mark.parametrize("policy", [False, "selective"], ids=str)
def test_a_prompts_masked_attention_is_planned_like_a_completions(policy, no_kernels):
    case = Case("gemma3")
    mask_NN = torch.ones(N, N).tril().bool()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([_masked_attention(q, k, v, mask_NN, case.decoder.scale)])

    case.attend = attend
    sizes = sizes_of(case.model)
    assert sizes.masked_prompts and not sizes_of(Case("qwen3_vl").model).masked_prompts
    expected = N * elements(kept_tensors(sizes, policy, prompt=True))
    # The results k and v are no one's input there; they are held as the prompt's all the same.
    expected -= N * sizes.kv
    assert kept(case, policy) == expected + N * N  # the mask, as numbers


def test_layers_that_are_called_as_they_are_keep_the_product_inside(no_kernels):
    found = []
    for tokens in (N, 2 * N):
        case = Case("qwen2_5_vl", tokens=tokens)
        case.attend = lambda q, k, v: Attention.apply(q, k, v)  # pyright: ignore
        assert not sizes_of(case.model).called_linears
        quantise(case)
        found.append(kept(case, False))
    sizes = sizes_of(case.model)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert sizes.called_linears
    # What is not planned: x A' of three adapters, of rank 4.
    planned = N * elements(kept_tensors(sizes, False))
    assert 0 <= found[1] - found[0] - planned <= N * 3 * 4


@pytest.mark.parametrize(("policy", "gib"), [(False, 30.57), ("selective", 9.03), (True, 3.74)])
def test_a_peak_measured_on_a_card_is_predicted(policy, gib):
    """H100, bf16, one prompt with its 8 completions at a time."""
    alone = [PromptPass((1010,), (ROWS,))] * 4
    found = predict(QWEN_7B, alone, policy)
    assert found.moment == "last layer"
    assert found.peak_bytes / GIB == pytest.approx(gib, rel=0.05)
    beside = predict(QWEN_7B, [PromptPass((1010,) * 4, (ROWS,) * 4)], policy)
    more = 3 * 1010 * 28 * token_bytes(QWEN_7B, kept_tensors(QWEN_7B, policy, prompt=True))
    # And their keys and values, and sums of their gradients.
    kv = 4 * 1010 * 28 * QWEN_7B.kv * (4 + (2 if policy is True else 0))
    assert more < beside.peak_bytes - found.peak_bytes <= more + kv


def test_recorded_peaks_are_predicted():
    """Whatever benchmarks/train_pass.py has measured: 4 prompts of about 1,010 tokens x 8."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "train_pass.json"
    names = {"none": False, "full": True}
    compared = 0
    for record in json.loads(path.read_text()):
        sizes = MEASURED.get(record["case"])
        if sizes is None:
            continue
        system, _, policy = record["system"].partition(", ")
        if system != "group":
            continue
        layout = [PromptPass((1010,) * 4, (ROWS,) * 4)]
        found = predict(sizes, layout, names.get(policy, policy))
        assert found.peak_bytes / GIB == pytest.approx(record["peak_gib"], rel=0.05), record
        compared += 1
    assert compared >= 5


def test_each_moment_can_be_the_highest():
    """Else a term could be wrong unseen: long prompts, a large vocabulary, nothing kept."""
    from dataclasses import replace

    short, long = Piece(((4000, (8,) * 8),)), Piece(((100, (1000,) * 8),))
    assert predict(QWEN_7B, [PromptPass((4000,) * 2, (short,) * 2)], True).moment == "prompts"
    words = replace(QWEN_7B, vocabulary=1 << 26, inner=64)
    assert predict(words, [PromptPass((100,), (long,))], True).moment == "head"
    found = predict(QWEN_7B, [PromptPass((1010,), (ROWS,))], "offload")
    assert found.moment == "first layer"
    assert found.peak_bytes == sum(found.terms.values())


def test_a_window_copies_the_prompts_end_once_a_completion():
    from dataclasses import replace

    sliding = replace(QWEN_7B, windows=(512, 0) * 14)
    layout = [PromptPass((1010,), (ROWS,))]
    more = predict(sliding, layout, False).peak_bytes - predict(QWEN_7B, layout, False).peak_bytes
    assert more == 14 * 8 * 511 * QWEN_7B.kv * 2
    full = predict(sliding, layout, True).peak_bytes
    assert full == predict(QWEN_7B, layout, True).peak_bytes


def layout_at(bound: int | None) -> list[PromptPass]:
    each = 8 if bound is None else max(1, bound // 1024)
    rows = [(1024,) * min(each, 8 - start) for start in range(0, 8, each)]
    return [PromptPass((1010,), tuple(Piece(((1010, row),)) for row in rows))] * 4


def test_more_memory_never_makes_training_slower():
    def speed(gib: float) -> tuple[int, int]:
        plan = choose(QWEN_7B, layout_at, int(gib * GIB))
        need = plan.prediction.peak_bytes
        assert need <= gib * GIB and not plan.within_margin
        return plan.tokens_at_once, -FASTEST_FIRST.index(plan.policy)

    found = [speed(tenths / 10) for tenths in range(12, 400, 2)]
    assert found == sorted(found)
    policies = {FASTEST_FIRST[-rank] for tokens, rank in found if tokens == 8192}
    assert policies == set(FASTEST_FIRST)
    assert {tokens for tokens, _ in found} > {8192, 4096}


def test_smaller_pieces_are_said_and_a_state_still_to_come_is_room_needed():
    from dataclasses import replace

    plan = choose(QWEN_7B, layout_at, 64 * GIB)
    assert (plan.policy, plan.pass_tokens) == (False, None)
    assert plan.line == (
        "training: gradient checkpointing none, 8192 completion tokens at once; predicted peak "
        "30.20 GiB, free 64.00 GiB"
    )
    states = replace(QWEN_7B, missing_states=40 * GIB)
    assert choose(states, layout_at, 64 * GIB).policy == "selective"
    small = choose(QWEN_7B, layout_at, int(1.5 * GIB))
    assert small.pass_tokens is not None and small.pass_tokens % 1024 == 0
    assert small.line.endswith(f"(pieces were made smaller: pass_tokens={small.pass_tokens})")


def test_too_little_memory_is_told_before_it_runs_out():
    least = min(predict(QWEN_7B, layout_at(1024), p).peak_bytes for p in FASTEST_FIRST)
    assert choose(QWEN_7B, layout_at, least).pass_tokens == 1024
    # The margin is for what is not predicted; it is reached into before anything is refused.
    tight = choose(QWEN_7B, layout_at, least, margin=1)
    assert tight.within_margin and "a margin that this reaches into" in tight.line
    with pytest.raises(ValueError) as error:
        choose(QWEN_7B, layout_at, least - 1)
    for part in (f"needs {least / GIB:.2f} GiB", "1024 completion tokens at once", "load_in_4bit"):
        assert part in str(error.value)


def test_what_a_cuda_graph_holds_is_not_free(monkeypatch):
    def segment(device: int, total: int, used: int, pool: tuple[int, int]) -> dict[str, Any]:
        sizes = {"total_size": total, "allocated_size": used}
        return {"device": device, "segment_pool_id": pool, **sizes}

    segments = [segment(0, 10 * GIB, 4 * GIB, (0, 0)), segment(0, 9 * GIB, 0, (0, 1)),
                segment(1, 7 * GIB, 0, (0, 0))]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30 * GIB, 80 * GIB))
    assert free_bytes(torch.device("cuda", 0)) == (36 * GIB, 4 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * GIB, 15 * GIB))
    assert free_bytes(torch.device("cuda", 0)) == (9 * GIB, 1 * GIB)
