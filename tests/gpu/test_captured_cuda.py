"""Layer inputs kept by captured graphs, and the gradients that come from them on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foveal.models.checkpointing import set_checkpointing
from foveal.models.family import stock_model
from foveal.models.forward import FeatureCache
from foveal.models.layer_inputs import PackedInputs
from foveal.rl import LossSpec, step_normaliser
from foveal.testing import TINY_FAMILIES, save_tiny
from foveal.train import group_pass
from foveal.train.captured import agreement
from foveal.train.plain_pass import PassSettings, Row
from foveal.types import PAGE, SamplingParams
from tests.gpu.test_engine import adapted, engine, ids_of

pytestmark = pytest.mark.gpu

SAMPLED = SamplingParams(max_tokens=PAGE + 20, seed=0)
GREEDY = SamplingParams(max_tokens=PAGE + 20, temperature=0.0, ignore_eos=True)
BOUNDS = {torch.float32: 0.9999, torch.float16: 0.999, torch.bfloat16: 0.995}
"""Of cosines on tiny models, whose few numbers round more unevenly than a real model's."""
every_type = pytest.mark.parametrize("dtype", list(BOUNDS), ids=["float32", "fp16", "bf16"])


@pytest.fixture(scope="module", params=list(TINY_FAMILIES))
def checkpoint(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param)


def kept_groups(sampler: Any, prompts: Any, n: int, sampling: SamplingParams) -> Any:
    with sampler.keeping_layer_inputs():
        return sampler.generate(prompts, n, sampling)


def streams_LND(model: Any, groups: Any) -> torch.Tensor:
    kept = [c.layer_inputs for group in groups for c in group.completions]
    packed = PackedInputs(kept, stock_model(model).device)
    # A completion of one token has no run.
    layers = next(run for one in kept for run in one.runs).block_SLD.shape[1]
    return torch.stack([packed.behind(layer) for layer in range(layers)])


def learn_with(model: Any) -> Any:
    def learn(rows: list[Row]) -> None:
        normaliser = step_normaliser(LossSpec(), [row.num_tokens for row in rows])
        group_pass.learn(
            model.train(), rows, normaliser,
            PassSettings(spec=LossSpec(), temperature=1.0, rows_at_once=4),
            cache=FeatureCache(), backward=torch.Tensor.backward,
        )  # fmt: skip

    return learn


@every_type
def test_a_replayed_graph_keeps_what_the_eager_step_keeps(checkpoint, dtype):
    """In the fused step, and in the plain one, which float32 takes. The second batch is larger."""
    model, processor, prompts = adapted(checkpoint, dtype=dtype)
    captured, eager = (
        engine(model, processor, graphs=graphs, max_rows=9) for graphs in (True, False)
    )
    for n, some, sampling in ((1, prompts[:1], GREEDY), (3, prompts, SAMPLED)):
        groups = kept_groups(captured, some, n, sampling)
        expected = kept_groups(eager, some, n, sampling)
        assert ids_of(groups) == ids_of(expected)
        found_LND, expected_LND = streams_LND(model, groups), streams_LND(model, expected)
        assert found_LND.isfinite().all()
        torch.testing.assert_close(found_LND, expected_LND, atol=1e-5, rtol=1e-5)
        # Asked for nothing, the same engine keeps nothing and draws the same.
        assert ids_of(captured.generate(some, n, sampling)) == ids_of(groups)
    assert captured.captures > 0 and eager.captures == 0
    runner = captured._runner
    assert runner is not None
    assert (runner.steps.why_plain is None) is (dtype != torch.float32)


@every_type
def test_gradients_from_kept_inputs_point_where_those_of_full_checkpointing_do(checkpoint, dtype):
    model, processor, prompts = adapted(checkpoint, dtype=dtype)
    groups = kept_groups(engine(model, processor), prompts, 4, SAMPLED)
    rows = [
        Row(group.prompt, c, float(place) - 1.4, (True,) * len(c.ids))
        for group in groups
        for place, c in enumerate(group.completions)
    ]
    set_checkpointing(model, "captured")
    found = agreement(model, rows, learn_with(model))
    print(found.line)
    assert found.cosines and all(c > BOUNDS[dtype] for c in found.cosines.values()), found.cosines


def test_memory_of_kept_inputs_is_given_back_with_the_completions(checkpoint):
    model, processor, prompts = adapted(checkpoint, dtype=torch.bfloat16)
    sampler = engine(model, processor)
    kept_groups(sampler, prompts, 4, SAMPLED)
    sampler.standby()
    before = torch.cuda.memory_allocated()
    groups = kept_groups(sampler, prompts, 4, SAMPLED)
    sampler.standby()
    assert torch.cuda.memory_allocated() > before
    del groups
    assert torch.cuda.memory_allocated() <= before
