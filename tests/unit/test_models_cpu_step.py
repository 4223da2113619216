"""The step for CPUs: against the stock layers, over pages, changes of the batch and of weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from foveal import FastVisionModel
from foveal.kernels.decode_attention_dense import DenseAttention
from foveal.models.cpu_step import CpuStep, why_not_on_cpu
from foveal.models.decoder import Decoder, plain_step
from foveal.models.precision import evaluating
from foveal.models.prefill import head_logits
from foveal.rollout.engine import Engine
from foveal.rollout.tables import BatchTables
from foveal.testing import tiny
from foveal.types import SamplingParams
from tests.decoding import arena_for, attend_in_torch, request, sequence
from tests.paged import dense_attention, paged_case, queries
from tests.samples import ragged_prompts


def adapted(model: Any) -> Any:
    """With an adapter that matters, and is zero on some layers of a group."""
    torch.manual_seed(0)
    model = FastVisionModel.get_peft_model(model, r=4, finetune_vision_layers=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        if "layers.1." in name and ("k_proj" in name or "up_proj" in name):
            parameter.data.zero_()
    return model


class Both:
    """The same rows through the stock layers and through the step, each with a cache of its own."""

    def __init__(self, model: Any) -> None:
        self.model, self.decoder = model, Decoder(model)
        d = self.decoder
        assert why_not_on_cpu(d, torch.float32) is None
        self.step, self.rotary = CpuStep(d), d.rotary_tables(600)
        self.arenas = arena_for(d, 30, seed=1), arena_for(d, 30, seed=1)
        self.tables = BatchTables(8, 8, d.heads // d.kv_heads, d.width, torch.device("cpu"))
        self.batch = 0
        self.sequences: list[Any] = []

    def fill(self, sequences: list[Any]) -> None:
        self.sequences = sequences
        self.tables.fill(sequences, len(sequences))
        self.batch += 1

    def advance(self, steps: int) -> None:
        """Take steps and compare the logits of each."""
        rows, t = self.tables.rows(len(self.sequences)), self.tables.on_device
        token_B = t["token"][: len(self.sequences)]
        found_BV = torch.zeros(len(token_B), self.decoder.vocabulary)
        plain, fast = self.arenas
        for _ in range(steps):
            position_B = t["base_position"][: len(token_B)] + rows.cached_B
            attend = attend_in_torch(self.decoder, rows, plain)
            hidden_BD = plain_step(self.decoder, token_B, self.rotary, position_B, attend)
            expected_BV = head_logits(self.model, hidden_BD)
            self.step(token_B, self.rotary, position_B, rows, fast, self.batch, found_BV)
            largest = expected_BV.abs().max()
            assert ((found_BV - expected_BV).abs().max() / largest).item() < 1e-5
            token_B.copy_((token_B * 7 + 3) % 250)
            rows.cached_B.add_(1)
        torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("with_adapter", [False, True])
def test_logits_and_cache_are_those_of_the_stock_layers(family, with_adapter):
    model, _ = tiny(family)
    both = Both(adapted(model) if with_adapter else model)
    long, short, other = request(130, [1, 2, 3], 9), request(7, [4], 3), request(65, [5, 6], 1)
    own = iter(range(7, 30))
    with evaluating(both.model):
        # Chunks of equal size, over the end of a page and of the room of the copied keys.
        rows = [sequence(r, n, [next(own), next(own), next(own)])
                for r, n in ((long, 60), (long, 3), (short, 0), (short, 62))]  # fmt: skip
        both.fill(rows)
        both.advance(66)
        # A row has left and one of another prompt has come: chunks of unequal size.
        kept = [sequence(r.request, r.cached + 66, r.pages) for r in rows[:3]]
        both.fill([*kept, sequence(other, 5, [next(own)])])
        both.advance(3)


def test_weights_are_taken_anew_and_a_switched_off_adapter_does_nothing(family):
    model, _ = tiny(family)
    both = Both(adapted(model))
    both.fill([sequence(request(20, [1]), 4, [2]), sequence(request(9, [3]), 0, [4])])
    with evaluating(both.model):
        both.advance(1)
        for parameter in both.model.parameters():
            parameter.data.mul_(0.9)
        both.step.refresh()
        both.advance(1)
        with both.model.disable_adapter():
            both.step.refresh()
            both.advance(1)


def test_models_that_the_step_would_get_wrong_are_refused():
    model, _ = tiny("qwen2_5_vl")
    decoder = Decoder(model)
    assert why_not_on_cpu(decoder, torch.float32) is None
    assert "cache" in (why_not_on_cpu(decoder, torch.float8_e4m3fn) or "")
    assert "bfloat16" in (
        why_not_on_cpu(Decoder(copy.deepcopy(model).bfloat16()), torch.float32) or ""
    )

    class Odd(nn.Linear):
        pass

    attention = decoder.layers[1].q
    attention.__class__ = Odd
    assert "Odd" in (why_not_on_cpu(decoder, torch.float32) or "")


def test_the_engine_takes_the_step_and_no_token_changes_with_it_or_with_few_rows(family):
    model, processor = tiny(family)
    model = adapted(model)
    prompts = ragged_prompts(model, processor)
    sampling = SamplingParams(max_tokens=70, seed=3)
    groups = []
    ways: list[dict[str, Any]] = [{"fused": False}, {}, {"max_rows": 5}]
    for options in ways:
        engine = Engine(model, processor.tokenizer, **options)
        # The second call meets other prompts in the pages of the first.
        groups.append([engine.generate(order, 4, sampling) for order in (prompts, prompts[::-1])])
        assert (engine._runner.steps._cpu is None) is ("fused" in options)  # pyright: ignore
    ids = [[[c.ids for c in g.completions] for call in calls for g in call] for calls in groups]
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize(
    "groups",
    [[(64, [3, 62, 64, 127]), (65, [4]), (1, [128, 66])], [(130, [3, 70]), (40, [9, 5])]],
    ids=["unequal chunks", "equal chunks"],
)
@pytest.mark.parametrize("window", [0, 2, 64, 100])
def test_keys_of_several_steps_are_seen_and_written_to_their_pages(groups, window):
    case = paged_case(groups, ratio=3, kv_heads=2, width=16)
    steps = 3
    last_B = case.rows.cached_B.clone()
    arena, rows = case.arena.clone(), case.rows
    for places in case.places:
        for page, at in places[-steps:]:
            arena[page, :, :, :, at] = 0.0
    rows.cached_B.copy_(last_B - steps + 1)
    attention = DenseAttention(rows, arena, 6, [window], room=steps)
    q_BHC = queries(case, 3)
    for step in range(steps):
        attention.begin()
        new = [places[len(places) - steps + step] for places in case.places]
        page_B, at_B = (torch.tensor(x) for x in zip(*new, strict=True))
        kv_BLNC = case.arena[page_B, :, :, :, at_B].flatten(2, 3)
        for layer in (0, 1):
            found = attention(
                q_BHC, kv_BLNC[:, layer], layer, scale=0.3, window=window, softcap=1.5
            )
        attention.finish()
        rows.cached_B.add_(1)
    settings = {"scale": 0.3, "window": window, "softcap": 1.5}
    expected = dense_attention(q_BHC, case, 1, **settings).flatten(1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(arena, case.arena)
    with pytest.raises(RuntimeError, match="room for 3 steps"):
        attention.begin()
