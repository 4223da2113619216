"""Runs what the scheduler decided: prompts into the cache, one token a row and step.

All tensors of a decode step have fixed addresses. The cache itself does not: kernels read where
it begins from the device, so it is freed while the trainer works and taken anew afterwards, and
the captured graphs still hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveal.models.decoder import Decoder
from foveal.models.forward import FeatureCache
from foveal.models.packed_prefill import packed_prefill
from foveal.models.prefill import Fill, prefill
from foveal.rollout.sampler import Sampler, mark_seen, seen_rows
from foveal.rollout.scheduler import Request, Sequence
from foveal.rollout.steps import Steps
from foveal.rollout.tables import DrawnTokens
from foveal.types import PAGE

PREFILL_TOKENS = 6400
"""Tokens, padding included, that go through the decoder at once: enough to keep the matrix units
busy, few enough that a 7B model's feed-forward needs half a GiB for them."""
MAX_BURST = 16
"""Decode steps between two looks of the host: what it costs to look is divided by it, what rows
compute past their end is bounded by it."""

Drawn = list[tuple[int, float]]


class Runner:
    """The device's half of the engine.

    Args:
        model: stock model or its PEFT wrapper.
        features: pictures that have been encoded, shared with whoever else needs them.
        max_rows: most rows of a batch.
        max_tokens: most tokens of a prompt, and of a completion.
        cache_dtype: of the arena; the model's type if None.
        graphs: capture CUDA graphs; without effect where there is no GPU.
        fused: use the fused kernels where the model allows it.
    """

    def __init__(
        self,
        model: nn.Module,
        features: FeatureCache,
        *,
        max_rows: int,
        max_tokens: int,
        cache_dtype: torch.dtype | None = None,
        graphs: bool = True,
        fused: bool = True,
    ) -> None:
        self.model, self.features = model, features
        self.decoder = Decoder(model)
        self.device = self.decoder.device
        self.cache_dtype = cache_dtype or self.decoder.dtype
        self.arena: Tensor | None = None
        self.steps = Steps(
            self.decoder,
            max_rows=max_rows,
            max_tokens=max_tokens,
            cache_dtype=self.cache_dtype,
            arena=self._awake_arena,
            graphs=graphs,
            fused=fused,
        )
        most, pinned = self.steps.buckets[-1], self.device.type == "cuda"
        self._drawn = DrawnTokens(MAX_BURST, most, self.device)
        self._uniform_host = torch.zeros(MAX_BURST, most, pin_memory=pinned)
        self._uniform = torch.zeros(MAX_BURST, most, device=self.device)
        self._described: list[tuple[object, ...]] = []
        """Rows that the tables describe, see ``_description``."""
        self._ahead = Ahead({}, torch.zeros(0, 0))

    @property
    def burst(self) -> int:
        """Most decode steps between two looks of the host."""
        return MAX_BURST if self.device.type == "cuda" else 4

    # -- memory

    @property
    def page_bytes(self) -> int:
        return self.decoder.page_elements * PAGE * self.cache_dtype.itemsize

    @property
    def held(self) -> int:
        """Bytes of the arena."""
        return 0 if self.arena is None else self.arena.numel() * self.arena.element_size()

    def _awake_arena(self) -> Tensor:
        assert self.arena is not None, "the cache is used while it is given back"
        return self.arena

    def wake(self, pages: int) -> None:
        """Take the arena: ``pages`` pages, one of them scratch."""
        d = self.decoder
        shape = (pages, len(d.layers), 2, d.kv_heads, PAGE, d.width)
        self.arena = torch.empty(shape, dtype=self.cache_dtype, device=self.device)
        # The scratch page is read by padding rows. In torch, hidden values are multiplied by
        # zero, so everywhere whatever the memory held before must be numbers.
        (self.arena[0] if self.steps.on_gpu_kernels else self.arena).zero_()
        self.steps.address.fill_(self.arena.data_ptr())

    def sleep(self) -> None:
        """Free the arena. What it held is gone; graphs stay."""
        self.arena = None
        self._described = []
        self.steps.release()

    def prepare(self, rows: int, *, keeping: bool = False) -> None:
        """Make the steps of every batch of up to ``rows`` rows; ``keeping`` as in ``Steps``."""
        if self.steps.prepare(rows, keeping=keeping):
            self._described = []

    # -- prompts

    def encode(self, requests: Rows[Request]) -> None:
        """Bring the pictures of prompts through the tower, as many at once as prefill takes."""
        images = [image for r in requests for image in r.payload.prompt.images]
        if not images:
            return
        while images:
            count, tokens = 0, 0
            while count < len(images) and (count == 0 or tokens <= PREFILL_TOKENS):
                tokens += images[count].num_tokens
                count += 1
            self.features.get(self.model, images[:count])
            images = images[count:]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def prefill(self, requests: Rows[Request]) -> None:
        """Compute prompts into their pages; their last logits go to the prefix."""
        fills = [Fill(r.payload.prompt, (), r.prefix_pages or (), 0) for r in requests]
        for chosen, logits_BV in self._fill(fills):
            for place, logits_V in zip(chosen, logits_BV, strict=True):
                prefix = requests[place].prefix
                assert prefix is not None
                prefix.payload = logits_V.clone()

    def recompute(self, sequences: Rows[Sequence]) -> None:
        """Compute the own tokens of rows that had to step back into their new pages."""
        fills = [
            Fill(s.request.payload.prompt, s.ids[:-1], s.pages, s.request.prompt_tokens)
            for s in sequences
        ]
        for _ in self._fill(fills):
            pass

    def _fill(self, fills: list[Fill]) -> Iterator[tuple[list[int], Tensor]]:
        """Prefill in batches of similar length and of about the same size."""
        lengths = [len(f.prompt.ids) + len(f.completion) for f in fills]
        for chosen in even_batches(lengths, PREFILL_TOKENS):
            yield chosen, self._prefill([fills[place] for place in chosen])

    def _prefill(self, fills: list[Fill]) -> Tensor:
        arena, lora = self._awake_arena(), self.steps.lora
        whole = all(fill.first == 0 for fill in fills)
        if lora is not None and whole and self.cache_dtype == self.decoder.dtype:
            return packed_prefill(
                self.decoder, lora, fills, arena, self.steps.address, self.features
            )
        return prefill(self.model, fills, arena, self.features)

    # -- tokens

    def start(self, sequences: Rows[Sequence], sampler: Sampler) -> list[Drawn]:
        """Draw the first token of each row from its prompt's last logits."""
        if not sequences:
            return []
        logits_BV = torch.stack([s.request.prefix.payload for s in sequences])  # pyright: ignore
        seen_BV = None
        if sampler.needs_seen:
            ids = [s.request.payload.prompt.ids for s in sequences]
            seen_BV = seen_rows(ids, logits_BV.shape[1], self.device)
        uniform_1B = sampler.uniforms([_seed(s) for s in sequences], [0] * len(sequences), 1)
        token_B, logprob_B = sampler(logits_BV, uniform_1B[0].to(self.device), seen_BV)
        return [[pair] for pair in zip(token_B.tolist(), logprob_B.tolist(), strict=True)]

    def decode(
        self, sequences: Rows[Sequence], steps: int, sampler: Sampler, *, keeping: bool = False
    ) -> Iterator[list[Drawn]]:
        """Take ``steps`` steps; ``(token, log-probability)`` of each row and step.

        They come in two parts: all but the last step while that one still runs, so that the host
        has little left to do when the device stands still. ``keeping``: what goes into the layers
        is kept, in places of the capture that ``steps.capture`` has begun.
        """
        bucket, count = self.steps.bucket(len(sequences)), len(sequences)
        self.prepare(count, keeping=keeping)
        run = self.steps.step(bucket, keeping=keeping)
        self._describe(sequences, bucket)
        if keeping:
            self.steps.capture.burst(sequences, bucket, steps)
        uniform_SB = self._upload_uniforms(sequences, steps, sampler)
        seen_BV = self._seen_rows(sequences, bucket, sampler)
        token_B = self.steps.tables.on_device["token"][:bucket]
        for step in range(steps):
            run()
            drawn_B, _ = sampler(
                self.steps.logits[:bucket],
                uniform_SB[step, :bucket],
                seen_BV,
                self._drawn.tokens[step, :bucket],
                self._drawn.logprobs[step, :bucket],
            )
            if seen_BV is not None:
                mark_seen(seen_BV, drawn_B)
            token_B.copy_(drawn_B)
            self._drawn.fetch(step)
        # The device is busy for a while: what need not wait for its answers is done now.
        self._described = [_description(s, s.cached + steps) for s in sequences]
        if sampler.sampling.temperature > 0:
            self._ahead = Ahead.of(sequences, steps, self.burst, sampler)
        for first, last in ((0, steps - 1), (steps - 1, steps)):
            if last > first:
                yield self._drawn.read(first, last, count)

    def _describe(self, sequences: Rows[Sequence], bucket: int) -> None:
        """Write the batch's tables, unless the device has carried them on by itself."""
        if [_description(s, s.cached) for s in sequences] != self._described:
            self.steps.tables.fill(sequences, bucket)
            self.steps.batch += 1

    def _upload_uniforms(self, sequences: Rows[Sequence], steps: int, sampler: Sampler) -> Tensor:
        if sampler.sampling.temperature > 0:
            uniform_SB = self._ahead.take(sequences, steps)
            if uniform_SB is None:
                firsts = [len(s.ids) for s in sequences]
                uniform_SB = sampler.uniforms([_seed(s) for s in sequences], firsts, steps)
            self._uniform_host[:steps, : len(sequences)] = uniform_SB
            self._uniform.copy_(self._uniform_host, non_blocking=True)
        return self._uniform

    def _seen_rows(self, sequences: Rows[Sequence], bucket: int, sampler: Sampler) -> Tensor | None:
        if not sampler.needs_seen:
            return None
        ids = [[*s.request.payload.prompt.ids, *s.ids] for s in sequences]
        ids += [[] for _ in range(bucket - len(ids))]
        return seen_rows(ids, self.decoder.vocabulary, self.device)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Random numbers of the next burst, drawn while the device is busy with this one."""

    columns: dict[tuple[int, int], int]
    """Of a row's seed and the index of its next token."""
    uniform_SB: Tensor

    @classmethod
    def of(cls, sequences: Rows[Sequence], steps: int, next_steps: int, sampler: Sampler) -> Ahead:
        """For rows that are ``steps`` longer then, should none of them end."""
        seeds = [_seed(s) for s in sequences]
        firsts = [len(s.ids) + steps for s in sequences]
        columns = {pair: i for i, pair in enumerate(zip(seeds, firsts, strict=True))}
        return cls(columns, sampler.uniforms(seeds, firsts, next_steps))

    def take(self, sequences: Rows[Sequence], steps: int) -> Tensor | None:
        """``[steps, B]`` for those of them that are left; None where others are among them."""
        columns = [self.columns.get((_seed(s), len(s.ids))) for s in sequences]
        if None in columns or steps > len(self.uniform_SB):
            return None
        whole = columns == list(range(self.uniform_SB.shape[1]))
        return self.uniform_SB[:steps] if whole else self.uniform_SB[:steps, columns]


def even_batches(lengths: Rows[int], most: int) -> list[list[int]]:
    """Places of rows in batches of at most ``most`` padded tokens, or of one row.

    Rows of similar length stand together, and batches differ by about a row at most: a short last
    batch would use the device badly.
    """
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    batches: list[list[int]] = []
    left = sum(lengths)
    while order:
        goal = left / -(-left // most)
        count = 1
        while count < len(order):
            padded = (count + 1) * lengths[order[count]]
            if padded > most or padded - lengths[order[count]] / 2 > goal:
                break
            count += 1
        batches.append(order[:count])
        left -= sum(lengths[place] for place in order[:count])
        order = order[count:]
    return batches


def _description(sequence: Sequence, cached: int) -> tuple[object, ...]:
    """All that the tables say of a row. The pages themselves, not their number: a row that stepped
    back may come again at once with as many others."""
    prefix = sequence.request.prefix_pages or ()
    return id(sequence), tuple(sequence.pages), tuple(prefix), cached


def _seed(sequence: Sequence) -> int:
    return sequence.request.payload.seeds[sequence.sample]
