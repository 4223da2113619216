"""Boxes by generalised IoU, and by average precision with a price on extra boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveal.rewards.boxes import Box, answered_boxes, pairwise_giou, pairwise_iou

if TYPE_CHECKING:
    import numpy as np

COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""The IoU thresholds over which COCO averages."""


@dataclass(frozen=True)
class BoxesGIoU:
    """The reward function that ``boxes_giou`` returns; a class so that it can be pickled."""

    floor: float

    __name__ = "boxes_giou"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [
            None if reference is None else self._score(answer, reference)
            for answer, reference in answered_boxes(completions, columns)
        ]

    def _score(self, predicted: Sequence[Box] | None, reference: Sequence[Box]) -> float:
        if predicted is None:
            return self.floor
        count = max(len(predicted), len(reference))
        if count == 0:
            return 1.0
        from scipy.optimize import linear_sum_assignment

        giou_PR = pairwise_giou(predicted, reference).clip(min=self.floor)
        rows, columns = linear_sum_assignment(giou_PR, maximize=True)
        # fsum: the same boxes in another order give the same reward, to the last bit.
        matched = math.fsum(giou_PR[rows, columns].tolist())
        return (matched + self.floor * (count - len(rows))) / count


def boxes_giou(floor: float = -1.0) -> BoxesGIoU:
    """Reward function: mean generalised IoU (arXiv:1902.09630) of boxes matched one to one.

    Like ``boxes_iou`` (same answers, columns, labels and errors), but in [floor, 1]: boxes that
    miss their object differ by how far they miss it. A missing, extra, repeated or malformed box
    counts as ``floor``, and an answer that is no list of boxes earns it. A box around the whole
    picture encloses every object, so it gets its small IoU: more than a box elsewhere, still
    about 0. With ``floor=0`` only boxes that nearly overlap or do earn anything.

    Raises ValueError unless -1 <= floor <= 0.
    """
    if not -1.0 <= floor <= 0.0:
        raise ValueError(f"floor is {floor}; it must lie between -1 (all of GIoU) and 0")
    return BoxesGIoU(float(floor))


@dataclass(frozen=True)
class BoxesMAP:
    """The reward function that ``boxes_map`` returns; a class so that it can be pickled."""

    thresholds: tuple[float, ...]
    count_penalty: float

    __name__ = "boxes_map"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [
            None if reference is None else 0.0 if answer is None else self._score(answer, reference)
            for answer, reference in answered_boxes(completions, columns)
        ]

    def _score(self, predicted: Sequence[Box], reference: Sequence[Box]) -> float:
        if not predicted or not reference:
            return float(len(predicted) == len(reference))
        iou_PR = pairwise_iou(predicted, reference)
        precision = math.fsum(_average_precision(iou_PR, t) for t in self.thresholds)
        share = min(1.0, len(reference) / len(predicted))
        return precision / len(self.thresholds) * share**self.count_penalty


def _average_precision(iou_PR: np.ndarray, threshold: float) -> float:
    """Area under the precision-recall curve; the boxes rank in the order of the answer."""
    free = [True] * iou_PR.shape[1]
    precisions: list[float] = []  # at each box that finds an object
    for rank, iou_R in enumerate(iou_PR.tolist(), start=1):
        found = [(iou, r) for r, iou in enumerate(iou_R) if free[r] and iou >= threshold]
        if found:
            free[max(found)[1]] = False
            precisions.append((len(precisions) + 1) / rank)
    # Interpolated: at each recall the best precision at that recall or a higher one.
    best = [max(precisions[place:]) for place in range(len(precisions))]
    return math.fsum(best) / len(free)


def boxes_map(
    thresholds: Sequence[float] = COCO_THRESHOLDS, count_penalty: float = 1.0
) -> BoxesMAP:
    """Reward function: average precision of the boxes, averaged over IoU ``thresholds``, in [0, 1].

    As in COCO each box in turn takes the free reference box that it overlaps most, if at least by
    the threshold. Completions give no confidences, so the order of the boxes is their rank; and
    objects of all labels are pooled, since one picture has few. Average precision alone does not
    mind extra boxes at the end, so the result is multiplied by
    (boxes in the reference / boxes in the answer) ** ``count_penalty`` where there are more.

    Answers, columns, labels and errors are those of ``boxes_iou``. Raises ValueError for
    thresholds outside (0, 1], for none, and for a negative penalty.
    """
    values = tuple(float(t) for t in thresholds)
    if not values or not all(0.0 < t <= 1.0 for t in values):
        raise ValueError(f"thresholds is {thresholds!r}; give at least one, each in (0, 1]")
    if not (math.isfinite(count_penalty) and count_penalty >= 0):
        raise ValueError(f"count_penalty is {count_penalty}; it must be finite and at least 0")
    return BoxesMAP(values, float(count_penalty))
