"""Choosing tokens by entropy, the controller of the bonus, and statistics that add up."""

import pytest
import torch

from foveal.rl import (
    EntropyControl,
    Max,
    Mean,
    Min,
    Sum,
    entropy_mask,
    entropy_threshold,
    merge_stats,
    stat_values,
)

INF = float("inf")


def test_threshold_interpolates_between_the_sorted_entropies():
    entropy_N = torch.tensor([4.0, 1.0, 3.0, 2.0])
    # Quantile 1 - 0.2 of four values lies at 0.8 * 3 = 2.4 in the sorted order.
    assert entropy_threshold(entropy_N, 0.2).item() == pytest.approx(3.4)
    assert entropy_threshold(entropy_N, 0.0).item() == 4
    assert entropy_threshold(entropy_N, 1.0).item() == 1


def test_padding_is_never_kept_even_with_a_high_entropy():
    entropy_BT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 9.0, float("nan")]])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    threshold = entropy_threshold(entropy_BT[mask_BT], 0.5)
    kept = entropy_mask(entropy_BT, mask_BT, threshold)
    assert kept.tolist() == [[False, False, True], [True, False, False]]


def test_no_tokens_keep_nothing():
    threshold = entropy_threshold(torch.zeros(0), 0.5)
    assert not entropy_mask(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool), threshold).any()


def test_a_quantile_out_of_range_is_refused():
    with pytest.raises(ValueError, match="quantile is 20"):
        entropy_threshold(torch.zeros(3), 20)


def test_controller_waits_for_a_measurement_then_follows_the_target():
    control = EntropyControl(coef=0.01, step=0.005, target=0.2, maximum=0.012)
    assert control.applied == 0
    control = control.update(0.1)
    assert control.coef == 0.012 and control.applied == 0.012  # bounded above
    control = control.update(0.5)
    assert control.coef == pytest.approx(0.007) and control.applied == 0
    control = control.update(0.5).update(0.5)
    assert control.coef == 0.0  # bounded below
    control = control.update(0.2)  # at the target counts as too low
    assert control.applied == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"minimum": 2.0}, "minimum is 2.0"), ({"step": -1.0}, "step is -1")]
)
def test_controller_bounds_that_cross_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EntropyControl(**arguments)


def test_a_mean_weighs_tokens_and_not_micro_batches():
    def part(total, count, extreme):
        return {
            "mean": Mean(torch.tensor(total), torch.tensor(count)),
            "sum": Sum(torch.tensor(total)),
            "min": Min(torch.tensor(extreme)),
            "max": Max(torch.tensor(extreme)),
        }

    merged = merge_stats(part(1.0, 1, 5.0), part(8.0, 2, -1.0), {"sum": Sum(torch.tensor(1.0))})
    assert stat_values(merged) == {"mean": 3.0, "sum": 10.0, "min": -1.0, "max": 5.0}


def test_an_extreme_of_nothing_is_nan_and_yields_to_any_number():
    nothing = {"min": Min(torch.tensor(INF)), "max": Max(torch.tensor(-INF))}
    values = stat_values(nothing)
    assert values["min"] != values["min"] and values["max"] != values["max"]
    something = {"min": Min(torch.tensor(2.0)), "max": Max(torch.tensor(2.0))}
    assert stat_values(merge_stats(nothing, something)) == {"min": 2.0, "max": 2.0}


def test_one_name_cannot_be_two_kinds_of_statistic():
    with pytest.raises(TypeError, match="'x' is both Sum and Min"):
        merge_stats({"x": Sum(torch.tensor(1.0))}, {"x": Min(torch.tensor(1.0))})
