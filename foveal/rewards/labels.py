"""Labels of boxes and points: which answered object may stand for which of the reference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from foveal.rewards.extract import normalised

_NO_NAME = "\0"
"""For a label that cannot be written out; it equals that of no object."""


def label_of(value: Any) -> str | None:
    """``value`` as a label, but for case and spacing; None if it is missing or empty."""
    if not value:
        return None
    try:
        return normalised(str(value))
    except RecursionError:  # lists in lists, thousands deep
        return _NO_NAME


def several_kinds(labels: Iterable[str | None]) -> bool:
    """Whether at least two different labels are among ``labels``."""
    return len({label for label in labels if label}) > 1


def labels_agree(answered: str | None, reference: str | None, several: bool) -> bool:
    """Whether the labels of two objects allow them to be matched.

    Different labels do not. An answered object without one stands for any, unless ``several``
    kinds are asked for: leaving the labels out would then be a way to get each of them right.
    """
    if not reference:
        return True
    return answered == reference if answered else not several
