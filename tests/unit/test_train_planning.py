"""The plan of a window: from a model and rows to a policy and pieces, through a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from foveal.memory.planner import GIB, Piece
from foveal.models.forward import FeatureCache
from foveal.models.state import state_of
from foveal.testing import TINY_FAMILIES
from foveal.train import group_pass, planning
from foveal.train.planning import policies_of, sizes_of
from tests.runs.tiny_run import adapted, parameters, trainer
from tests.samples import picture, row


def gpu(monkeypatch, free: list[int], *, margin: int = 0) -> None:
    """A GPU with so many bytes free before each window."""
    left = iter(free)
    monkeypatch.setattr(planning, "device_of", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(planning, "free_bytes", lambda _: (next(left), margin))


def spied_passes(monkeypatch) -> list[tuple[Any, list[Piece]]]:
    """Policy and pieces of each training pass."""
    found, learn = [], group_pass.learn

    def spy(model: Any, rows: Any, normaliser: Any, settings: Any, **given: Any) -> Any:
        layout = group_pass.layout(rows, settings)
        pieces = [piece for one in layout for piece in one.pieces]
        found.append((state_of(model).checkpointing, pieces))
        return learn(model, rows, normaliser, settings, **given)

    monkeypatch.setattr(group_pass, "learn", spy)
    return found


def run(folder: Any, **config: Any) -> Any:
    """Two windows on a model whose checkpointing nobody chose."""
    made = trainer(folder, model=adapted(use_gradient_checkpointing=None), max_steps=2, **config)
    made.train()
    return made


def test_each_window_is_planned_for_the_memory_that_is_free_then(tmp_path, monkeypatch, capsys):
    plain = run(tmp_path / "plain", gradient_checkpointing=False)
    gpu(monkeypatch, [GIB, GIB])
    passes = spied_passes(monkeypatch)
    roomy = run(tmp_path / "roomy", gradient_checkpointing="auto")
    assert [policy for policy, _ in passes] == [False, False]
    assert [len(piece.completions) for _, pieces in passes for piece in pieces] == [4] * 2
    # Said once, although both windows were planned.
    assert capsys.readouterr().out.count("training: gradient checkpointing none") == 1
    assert state_of(roomy.policy).checkpointing == "auto"
    for name, parameter in parameters(plain.policy).items():
        torch.testing.assert_close(parameters(roomy.policy)[name], parameter)
    lines = [json.loads(line) for line in (tmp_path / "roomy/metrics.jsonl").open()]
    assert lines[0]["memory/predicted_gib"] > 0 and "memory/train_gib" in lines[0]


def test_with_little_memory_pieces_are_smaller_and_nothing_else_changes(
    tmp_path, monkeypatch, capsys
):
    long = {"max_completion_length": 150}
    plain = run(tmp_path / "plain", gradient_checkpointing=False, **long)
    passes, choose = spied_passes(monkeypatch), planning.choose

    def least(sizes: Any, layout_at: Any, *_: Any, **given: Any) -> Any:
        """As with just enough for a row at a time."""
        alone = layout_at(150)
        free = min(planning.predict(sizes, alone, p).peak_bytes for p in given["policies"])
        return choose(sizes, layout_at, free + sizes.missing_states, **given)

    gpu(monkeypatch, [GIB, GIB])
    monkeypatch.setattr(planning, "choose", least)
    run_small = run(tmp_path / "small", gradient_checkpointing="auto", **long)
    assert all(piece.tokens <= 150 for _, pieces in passes for piece in pieces)
    assert [policy for policy, _ in passes] == ["offload"] * 2
    assert "(pieces were made smaller: pass_tokens=150)" in capsys.readouterr().out
    for name, parameter in parameters(plain.policy).items():
        torch.testing.assert_close(
            parameters(run_small.policy)[name], parameter, atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("policy", [True, "auto"])
def test_short_completions_pass_together_only_where_memory_abounds(tmp_path, monkeypatch, policy):
    """Else a run of one row at a time would launch every layer once for each short row."""
    passes, predict, peaks = spied_passes(monkeypatch), planning.predict, []

    def spy(sizes: Any, *given: Any) -> Any:
        found = predict(sizes, *given)
        peaks.append(found.peak_bytes + sizes.missing_states)
        return found

    def pieces(name: str, free: int, **given: Any) -> list[int]:
        passes.clear()
        gpu(monkeypatch, [free, free])
        run(tmp_path / name, gradient_checkpointing=policy, per_device_train_batch_size=1,
            gradient_accumulation_steps=2, **given)  # fmt: skip
        return [len(of_step) for _, of_step in passes]

    monkeypatch.setattr(planning, "predict", spy)
    assert pieces("plenty", GIB) == [1, 1]
    together = peaks[0]
    assert pieces("little", together) == [2, 2]
    assert pieces("asked", GIB, pass_tokens=1) == [2, 2], "what was asked for comes first"


def test_too_little_for_a_row_stops_the_run_before_its_pass(tmp_path, monkeypatch):
    gpu(monkeypatch, [1000])
    passes = spied_passes(monkeypatch)
    with pytest.raises(ValueError, match=r"training needs .* GiB even with .* are free"):
        run(tmp_path, gradient_checkpointing="auto")
    assert not passes


def test_another_policy_is_followed_and_its_peak_expected(tmp_path, monkeypatch):
    gpu(monkeypatch, [1000, 1000])
    passes = spied_passes(monkeypatch)
    run(tmp_path, gradient_checkpointing="selective")
    assert [policy for policy, _ in passes] == ["selective"] * 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines[0]["memory/predicted_gib"] > 0


def test_without_a_gpu_auto_is_the_default(tmp_path, monkeypatch):
    passes = spied_passes(monkeypatch)
    made = run(tmp_path, gradient_checkpointing="auto")
    assert [policy for policy, _ in passes] == ["auto"] * 2
    marked = [m for m in made.policy.modules() if getattr(m, "gradient_checkpointing", False)]
    assert marked, "as True: layers keep their inputs"
    assert "memory/predicted_gib" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_trained_towers_estimate_is_above_what_it_keeps_and_not_by_much(family):
    model, processor = adapted(family, finetune_vision_layers=True)
    assert sizes_of(adapted(family)[0]).tower_token_bytes == 0
    from tests.unit.test_models_lora import build

    prompt = build(model.get_base_model(), processor, row("How many?", picture(0, 200, 200)))[0]
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        FeatureCache().get(model.train(), prompt.images)
    tokens = sum(image.num_tokens for image in prompt.images)
    kept = sum(t.untyped_storage().nbytes() for t in found.values())
    assert 1 < sizes_of(model).tower_token_bytes * tokens / kept < 2


def test_a_layer_that_cannot_be_fused_is_planned_for_whole_recomputation():
    model, _ = adapted("qwen3_vl")
    assert policies_of(model)[0] is False
    norm = model.get_base_model().model.language_model.layers[1].self_attn.q_norm
    norm.register_forward_hook(lambda *_: None)
    assert policies_of(model) == (True, "offload")
