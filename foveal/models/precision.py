"""Which arithmetic a model computes in, decided in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

from foveal.models.family import stock_model

HALF_TYPES = (torch.bfloat16, torch.float16)


def autocast(model: nn.Module) -> AbstractContextManager[object]:
    """The context in which sampler, trainer and reference all compute.

    Adapters are kept in float32 for the optimizer's sake while base weights are 16 bit; matrix
    products of both then run in the base's type. A float32 model computes in float32.
    """
    stock = stock_model(model)
    if stock.dtype in HALF_TYPES:
        return torch.autocast(stock.device.type, dtype=stock.dtype)
    return contextlib.nullcontext()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, in the trainer's arithmetic; each module's mode is put
    back."""
    training = [module for module in model.modules() if module.training]
    _switch(training, False)
    try:
        with torch.no_grad(), autocast(model):
            yield
    finally:
        _switch(training, True)


def _switch(modules: list[nn.Module], training: bool) -> None:
    for module in modules:
        if type(module).train is nn.Module.train:
            # What train() comes to for one module. Its own walk, and assignment through the
            # module's hooks, would take tens of milliseconds on a large model.
            vars(module)["training"] = training
        else:
            module.train(training)
