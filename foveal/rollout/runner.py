"""Runs what the scheduler decided: prompts into the cache, one token a row and step.

All tensors of a decode step have fixed addresses. The cache itself does not: kernels read where
it begins from the device, so it is freed while the trainer works and taken anew afterwards, and
the captured graphs still hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from foveal.kernels.decode_attention import (
    PAGE,
    DecodeAttention,
    PagedRows,
)
from foveal.kernels.decode_attention_torch import TorchAttention
from foveal.kernels.decode_fused import write_cache
from foveal.models.cpu_step import CpuStep, why_not_on_cpu
from foveal.models.decoder import Decoder, plain_step
from foveal.models.forward import FeatureCache
from foveal.models.fused_decoder import FusedStep, Workspace, why_not_fused
from foveal.models.packed_lora import PackedLora
from foveal.models.packed_prefill import packed_prefill
from foveal.models.prefill import Fill, head_logits, prefill
from foveal.rollout.graphs import GraphStep
from foveal.rollout.sampler import Sampler, mark_seen, seen_rows
from foveal.rollout.scheduler import Request, Sequence
from foveal.rollout.tables import BatchTables, DrawnTokens

BUCKETS = (1, 4, 8, 16, 32, 64, 96, 128)
"""Batch sizes that are captured. Below 32 rows a step takes as long as its weights take to read,
so finer steps would buy nothing."""
PREFILL_TOKENS = 4096
"""Padded tokens that go through the decoder at once."""
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
        self.decoder = decoder = Decoder(model)
        self.device = decoder.device
        self.cache_dtype = cache_dtype or decoder.dtype
        self.buckets = [b for b in BUCKETS if b < max_rows]
        self.buckets.append(min(b for b in (*BUCKETS, max_rows) if b >= max_rows))
        self.max_rows = max_rows
        self.why_plain = why_not_fused(decoder) if fused else "fused=False was asked for"
        self.rotary = decoder.rotary_tables(2 * max_tokens + 1)
        most, ratio = self.buckets[-1], decoder.heads // decoder.kv_heads
        self.tables = BatchTables(
            most, -(-max_tokens // PAGE) + 1, ratio, decoder.width, self.device
        )
        self.address = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.arena: Tensor | None = None
        self.logits = torch.zeros(most, decoder.vocabulary, dtype=decoder.dtype, device=self.device)
        self._drawn = DrawnTokens(MAX_BURST, most, self.device)
        pinned = self.device.type == "cuda"
        self._uniform_host = torch.zeros(MAX_BURST, most, pin_memory=pinned)
        self._uniform = torch.zeros(MAX_BURST, most, device=self.device)
        self._described: list[tuple[int, int, int]] = []
        """Rows that the tables describe: sequence, pages, tokens in the cache."""
        self.lora: PackedLora | None = None
        self._room: Workspace | None = None
        if self.why_plain is None:
            self.lora = PackedLora(decoder.products, decoder.dtype)
            self._room = Workspace(decoder, most)
        self._cpu: CpuStep | None = None
        if fused and why_not_on_cpu(decoder, self.cache_dtype) is None:
            self._cpu = CpuStep(decoder)
        self._batch = 0
        """Counts how often the tables were written."""
        self._triton = self.why_plain is None or self._attends_in_triton()
        self._graphs = graphs and self._triton and self.device.type == "cuda"
        self._steps: dict[int, Callable[[], None]] = {}
        self.captures = 0
        """Graphs captured so far."""
        self.graph_bytes = 0
        """Device memory that they hold."""

    def refresh(self) -> None:
        """Take the adapters as they are now."""
        for copies in (self.lora, self._cpu):
            if copies is not None:
                copies.refresh()

    # -- memory

    @property
    def page_bytes(self) -> int:
        return self.decoder.page_elements * PAGE * self.cache_dtype.itemsize

    @property
    def workspace_bytes(self) -> int:
        """Of what is held between rollouts beside graphs."""
        tensors = [self.logits, *self.tables.on_device.values()]
        tensors += [part for pair in self.rotary.values() for part in pair]
        own = sum(t.numel() * t.element_size() for t in tensors)
        own += 0 if self.lora is None else self.lora.bytes
        return own + (0 if self._room is None else self._room.bytes)

    @property
    def held(self) -> int:
        """Bytes of the arena."""
        return 0 if self.arena is None else self.arena.numel() * self.arena.element_size()

    @property
    def awake(self) -> bool:
        return self.arena is not None

    def wake(self, pages: int) -> None:
        """Take the arena: ``pages`` pages, one of them scratch."""
        d = self.decoder
        shape = (pages, len(d.layers), 2, d.kv_heads, PAGE, d.width)
        self.arena = torch.empty(shape, dtype=self.cache_dtype, device=self.device)
        # The scratch page is read by padding rows. In torch, hidden values are multiplied by
        # zero, so everywhere whatever the memory held before must be numbers.
        (self.arena[0] if self._triton else self.arena).zero_()
        self.address.fill_(self.arena.data_ptr())

    def sleep(self) -> None:
        """Free the arena. What it held is gone; graphs stay."""
        self.arena = None
        self._described = []
        self.address.zero_()
        if self._cpu is not None:
            self._cpu.release()

    # -- prompts

    def encode(self, requests: Rows[Request]) -> None:
        """Bring the pictures of prompts through the tower, as many at once as prefill takes."""
        images = [image for r in requests for image in r.payload.prompt.images]
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
        """Prefill in batches of similar length, bounded in padded tokens."""
        assert self.arena is not None
        lengths = [len(f.prompt.ids) + len(f.completion) for f in fills]
        order = sorted(range(len(fills)), key=lambda place: lengths[place])
        while order:
            count = 1
            while count < len(order) and (count + 1) * lengths[order[count]] <= PREFILL_TOKENS:
                count += 1
            chosen, order = order[:count], order[count:]
            yield chosen, self._prefill([fills[place] for place in chosen])

    def _prefill(self, fills: list[Fill]) -> Tensor:
        assert self.arena is not None
        whole = all(fill.first == 0 for fill in fills)
        if self.lora is not None and whole and self.cache_dtype == self.decoder.dtype:
            return packed_prefill(
                self.decoder, self.lora, fills, self.arena, self.address, self.features
            )
        return prefill(self.model, fills, self.arena, self.features)

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
        self, sequences: Rows[Sequence], steps: int, sampler: Sampler
    ) -> Iterator[list[Drawn]]:
        """Take ``steps`` steps; ``(token, log-probability)`` of each row and step.

        They come in two parts: all but the last step while that one still runs, so that the host
        has little left to do when the device stands still.
        """
        bucket, count = self._bucket(len(sequences)), len(sequences)
        run = self._step(bucket)
        self._describe(sequences, bucket)
        uniform_SB = self._upload_uniforms(sequences, steps, sampler)
        seen_BV = self._seen_rows(sequences, bucket, sampler)
        token_B = self.tables.on_device["token"][:bucket]
        for step in range(steps):
            run()
            drawn_B, _ = sampler(
                self.logits[:bucket],
                uniform_SB[step, :bucket],
                seen_BV,
                self._drawn.tokens[step, :bucket],
                self._drawn.logprobs[step, :bucket],
            )
            if seen_BV is not None:
                mark_seen(seen_BV, drawn_B)
            token_B.copy_(drawn_B)
            self._drawn.fetch(step)
        for first, last in ((0, steps - 1), (steps - 1, steps)):
            if last > first:
                yield self._drawn.read(first, last, count)

    def _describe(self, sequences: Rows[Sequence], bucket: int) -> None:
        """Write the batch's tables, unless the device has carried them on by itself."""
        now = [(id(s), len(s.pages), s.cached) for s in sequences]
        if now != self._described:
            self.tables.fill(sequences, bucket)
            self._batch += 1

    def _upload_uniforms(self, sequences: Rows[Sequence], steps: int, sampler: Sampler) -> Tensor:
        if sampler.sampling.temperature > 0:
            seeds = [_seed(s) for s in sequences]
            firsts = [len(s.ids) for s in sequences]
            self._uniform_host[:steps, : len(sequences)] = sampler.uniforms(seeds, firsts, steps)
            self._uniform.copy_(self._uniform_host, non_blocking=True)
        self._described = [(id(s), len(s.pages), s.cached + steps) for s in sequences]
        return self._uniform

    def _bucket(self, rows: int) -> int:
        """Rows of the batch with padding: only captured steps need a fixed number."""
        return min(b for b in self.buckets if b >= rows) if self._triton else rows

    def _seen_rows(self, sequences: Rows[Sequence], bucket: int, sampler: Sampler) -> Tensor | None:
        if not sampler.needs_seen:
            return None
        ids = [[*s.request.payload.prompt.ids, *s.ids] for s in sequences]
        ids += [[] for _ in range(bucket - len(ids))]
        return seen_rows(ids, self.decoder.vocabulary, self.device)

    # -- the step

    def prepare(self, rows: int) -> None:
        """Compile kernels and capture graphs for every batch of up to ``rows`` rows."""
        if not self._triton:
            self._steps.setdefault(rows, self._runnable(rows, None))
            return
        wanted = [b for b in self.buckets if b <= min(b for b in self.buckets if b >= rows)]
        missing = [b for b in reversed(wanted) if b not in self._steps]
        if not missing:
            return
        assert self.awake
        self._described = []
        self.tables.fill([], self.buckets[-1])
        fused = {b: step for b in missing if (step := self._fused(b)) is not None}
        if self._graphs and fused:
            tasks = [
                task for b, step in fused.items() for task in step.warm_tasks(*self._inputs(b))
            ]
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda task: task(), tasks))
            torch.cuda.synchronize(self.device)
        pool = torch.cuda.graph_pool_handle() if self._graphs else None
        before = torch.cuda.memory_allocated(self.device) if pool is not None else 0
        for bucket in missing:
            run = self._runnable(bucket, fused.get(bucket))
            if pool is not None:
                with _autocast_without_cache(self.model):
                    run = GraphStep(run, self._pool(pool))
                self.captures += 1
            self._steps[bucket] = run
        if pool is not None:
            self.graph_bytes += torch.cuda.memory_allocated(self.device) - before

    def _step(self, bucket: int) -> Callable[[], None]:
        if bucket not in self._steps:
            self.prepare(bucket)
        return self._steps[bucket]

    _shared_pool: Any = None

    def _pool(self, fresh: Any) -> Any:
        """One pool for all graphs: they never run at the same time."""
        if self._shared_pool is None:
            self._shared_pool = fresh
        return self._shared_pool

    def _fused(self, bucket: int) -> FusedStep | None:
        if self.lora is None or self._room is None:
            return None
        return FusedStep(self.decoder, self.lora, bucket, self.cache_dtype, self._room)

    def _inputs(self, bucket: int) -> tuple[Any, ...]:
        t = self.tables.on_device
        rows = self.tables.rows(bucket)
        return (
            t["token"][:bucket], self.rotary, t["base_position"][:bucket], self.address, rows,
            self.logits[:bucket],
        )  # fmt: skip

    def _runnable(self, bucket: int, fused: FusedStep | None) -> Callable[[], None]:
        """One step of a batch: logits from tokens, and every row's length one more."""
        token_B, rotary, base_B, address, rows, logits_BV = self._inputs(bucket)
        if fused is not None:
            step = fused

            def run() -> None:
                step(token_B, rotary, base_B, address, rows, logits_BV)
                rows.cached_B.add_(1)

            return run
        if self._cpu is not None:
            on_cpu = self._cpu

            def run_on_cpu() -> None:
                assert self.arena is not None
                position_B = base_B + rows.cached_B
                on_cpu(token_B, rotary, position_B, rows, self.arena, self._batch, logits_BV)
                rows.cached_B.add_(1)

            return run_on_cpu
        attend = self._attend(rows, bucket)

        def run_plain() -> None:
            position_B = base_B + rows.cached_B
            hidden_BD = plain_step(self.decoder, token_B, rotary, position_B, attend)
            logits_BV.copy_(head_logits(self.model, hidden_BD))
            rows.cached_B.add_(1)

        return run_plain

    def _attend(self, rows: PagedRows, bucket: int) -> Callable[..., Tensor]:
        d = self.decoder
        scale, softcap = d.scale, d.score_softcap
        if not self._triton:
            window = max(layer.window for layer in d.layers)
            attention: TorchAttention | None = None

            def in_torch(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                nonlocal attention
                assert self.arena is not None
                if layer == 0:
                    attention = TorchAttention(rows, window)
                assert attention is not None
                write_cache(self.arena, layer, rows, k, v)
                return attention(
                    q, self.arena, layer,
                    scale=scale, window=d.layers[layer].window, softcap=softcap,
                )  # fmt: skip

            return in_torch
        return _TritonAttend(d, rows, bucket, self.cache_dtype, self.address)

    def _attends_in_triton(self) -> bool:
        width = self.decoder.width
        return self.device.type == "cuda" and 16 <= width <= 256 and not width & (width - 1)


class _TritonAttend:
    """Attention of the plain step on a GPU: the kernels of the fused one, called by themselves."""

    def __init__(
        self,
        decoder: Decoder,
        rows: PagedRows,
        bucket: int,
        cache_dtype: torch.dtype,
        address: Tensor,
    ) -> None:
        d = self.decoder = decoder
        self.rows, self.address, self.cache_dtype = rows, address, cache_dtype
        self.layer_stride = 2 * d.kv_heads * PAGE * d.width
        self.attention = DecodeAttention(
            bucket, d.heads, d.kv_heads, d.width, cache_dtype, d.device
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from foveal.kernels.decode_fused import store_cache

        d, offset = self.decoder, layer * self.layer_stride
        stride = self.layer_stride * len(d.layers)
        q, out = q.to(d.dtype).contiguous(), torch.empty_like(q, dtype=d.dtype)
        store_cache(k, v, self.address, offset, stride, self.rows, self.cache_dtype)
        self.attention(
            q, self.address, offset, stride, self.rows, out,
            scale=d.scale, window=d.layers[layer].window, softcap=d.score_softcap,
        )  # fmt: skip
        return out


def _seed(sequence: Sequence) -> int:
    return sequence.request.payload.seeds[sequence.sample]


@contextlib.contextmanager
def _autocast_without_cache(model: nn.Module) -> Iterator[None]:
    """Autocast that casts anew at each use: a cached copy would be frozen into the graph."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    enabled = torch.is_autocast_enabled("cuda")
    with torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda") if enabled else dtype,
                        enabled=enabled, cache_enabled=False):  # fmt: skip
        yield
