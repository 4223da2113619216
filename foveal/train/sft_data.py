"""From rows to batches of examples, in worker processes if asked, ahead of the GPU.

RowSource -> ExampleReader   a row: its prompt with pictures, its completion's tokens
          -> RowOrder        which rows each micro-step takes, from seed and epoch alone
          -> loader          both in a ``DataLoader``; a ``Batch`` travels as few tensors
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from foveal.data import PromptBuilder, RowSource, target_text
from foveal.train.sft_pass import Example
from foveal.types import Prompt


@dataclass(frozen=True, slots=True)
class ExampleReader:
    """Tokenises rows as the model's rollouts would have written them."""

    builder: PromptBuilder
    end_id: int
    """Token behind every completion."""
    template: str | None = None
    max_completion_length: int | None = None
    max_tokens: int | None = None
    """Of prompt and completion together: the model's ``max_seq_length``."""

    def read(self, rows: RowSource, index: int) -> Example:
        """One row, its pictures processed.

        Raises:
            ValueError: the row has no completion or one that is too long, or its prompt is as
                ``PromptBuilder.build`` refuses it.
        """
        row = rows[index]
        completion = self.completion(row.columns, index)
        prompt = self.builder.build(row, index, keep=not rows.is_drawn(index))
        example = Example(replace(prompt, messages=[], columns={}), completion)
        if self.max_tokens is not None and example.num_tokens > self.max_tokens:
            raise ValueError(
                f"row {index}: prompt and completion have {len(prompt.ids)} + {len(completion)} "
                f"tokens, above the model's max_seq_length={self.max_tokens}. Load it with a "
                "larger one, shorten the row, or set max_prompt_length to drop such rows."
            )
        return example

    def completion(self, row: Any, index: int) -> tuple[int, ...]:
        """Token ids of a raw row's completion, the end of the turn included.

        Raises:
            ValueError: it has none, holds a placeholder, or is longer than allowed.
        """
        text = target_text(row, index, self.template)
        self.builder.refuse_placeholders(text, "completion", index)
        ids = self.builder.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        most = self.max_completion_length
        if most is not None and len(ids) + 1 > most:
            raise ValueError(
                f"row {index}: the completion has {len(ids) + 1} tokens with the end of its turn, "
                f"max_completion_length is {most}. Raise it, or shorten or drop the row; it is "
                "not cut, because that would teach to stop short."
            )
        return (*ids, self.end_id)


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples on their way out of a worker: pixels as one tensor, because each tensor of its own
    takes a file descriptor until it is read."""

    bare: tuple[Example, ...]
    """Without pixels."""
    pixels: Tensor
    """Of all pictures, flat."""
    shapes: tuple[tuple[int, ...], ...]

    @property
    def completion_tokens(self) -> int:
        return sum(len(example.completion) for example in self.bare)

    @property
    def tokens(self) -> int:
        return sum(example.num_tokens for example in self.bare)

    def pin_memory(self) -> Batch:
        """The same with pixels from which a copy to the device waits for nothing."""
        return replace(self, pixels=self.pixels.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """The same with pixels on ``device``: one copy for all pictures."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    def examples(self) -> list[Example]:
        """The examples, their pictures views of ``pixels``."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        views = zip(self.pixels.split(sizes), self.shapes, strict=True)
        pixels = iter([flat.view(shape) for flat, shape in views])
        return [replace(one, prompt=_with_pixels(one.prompt, pixels)) for one in self.bare]


def pack(examples: Sequence[Example], dtype: torch.dtype = torch.float32) -> Batch:
    """Examples as a batch.

    Args:
        dtype: of the pixels on their way; the vision tower's, which casts them to it anyway.
    """
    pictures = [image.pixel_values for one in examples for image in one.prompt.images]
    empty = torch.empty(0, dtype=dtype)
    bare = tuple(
        replace(one, prompt=_with_pixels(one.prompt, iter([empty] * len(one.prompt.images))))
        for one in examples
    )
    shapes = tuple(tuple(pixels.shape) for pixels in pictures)
    flat = _room(sum(pixels.numel() for pixels in pictures), dtype)
    for place, pixels in zip(flat.split([p.numel() for p in pictures]), pictures, strict=True):
        place.copy_(pixels.reshape(-1))
    return Batch(bare, flat, shapes)


def _room(count: int, dtype: torch.dtype) -> Tensor:
    """Memory for ``count`` numbers; a worker's is shared, so that nothing is copied on the way."""
    if get_worker_info() is None or count == 0:
        return torch.empty(count, dtype=dtype)
    size = count * dtype.itemsize
    return torch.tensor([], dtype=dtype).set_(
        torch.UntypedStorage._new_shared(size),
        0,
        (count,),  # pyright: ignore
    )


def _with_pixels(prompt: Prompt, pixels: Iterator[Tensor]) -> Prompt:
    images = tuple(replace(image, pixel_values=next(pixels)) for image in prompt.images)
    return replace(prompt, images=images)


class Examples(Dataset[Example]):
    """The rows that a run uses, read as they are asked for."""

    def __init__(self, rows: RowSource, indices: Sequence[int], reader: ExampleReader) -> None:
        self.rows, self.indices, self.reader = rows, list(indices), reader

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Example:
        return self.reader.read(self.rows, self.indices[place])


class RowOrder(Sampler[list[int]]):
    """Places of the rows of each micro-step. ``epoch`` is to be set before iteration.

    Args:
        count: how many rows there are.
        batch_size: rows of a micro-step; the last one of an epoch may have fewer.
        shuffle: a new order each epoch, from ``seed`` and the epoch alone.
        seed: of the order.
        drop_last: leave out a last micro-step with fewer rows.
    """

    def __init__(
        self, count: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool = False
    ) -> None:
        self.count, self.batch_size, self.shuffle = count, batch_size, shuffle
        self.seed, self.drop_last, self.epoch = seed, drop_last, 0

    def __len__(self) -> int:
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(self.count))
        if self.shuffle:
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        for number in range(len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]


def loader(
    examples: Examples,
    order: RowOrder,
    *,
    dtype: torch.dtype,
    workers: int = 0,
    prefetch: int | None = None,
    persistent: bool = False,
) -> DataLoader[Any]:
    """Batches in ``order``.

    Args:
        dtype: of the pixels, as of :func:`pack`.
        workers: processes that read rows; 0 reads them in this one.
        prefetch: batches that each worker holds ready; torch's 2 if None.
        persistent: keep the workers from epoch to epoch.
    """
    return DataLoader(
        _InType(examples, dtype),
        batch_sampler=order,
        collate_fn=_Packer(dtype),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Workers are seeded from it and not from the run's own state, so resume is exact.
        generator=torch.Generator().manual_seed(0),
    )


class _InType(Dataset[Example]):
    """Examples whose pixels are in their type at once: a batch that waits for its last row then
    holds half of the memory, all of it fresh."""

    def __init__(self, examples: Examples, dtype: torch.dtype) -> None:
        self.examples, self.dtype = examples, dtype

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> Example:
        example = self.examples[place]
        pixels = [image.pixel_values.to(self.dtype) for image in example.prompt.images]
        return replace(example, prompt=_with_pixels(example.prompt, iter(pixels)))


@dataclass(frozen=True, slots=True)
class _Packer:
    """``pack`` with its type: what workers started anew can unpickle."""

    dtype: torch.dtype

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return pack(examples, self.dtype)


@contextlib.contextmanager
def cores_for_workers(device: torch.device, workers: int) -> Iterator[None]:
    """Meanwhile tensors of this process are computed by one thread, if a GPU does the rest.

    They are indices, and small. Shared out among threads that wait for cores which the workers
    have, a copy of a microsecond took 10 milliseconds.
    """
    before = torch.get_num_threads()
    if workers and device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
