"""The decode step of a batch, in the form that model and device allow.

    fused     16-bit models on a GPU: our kernels, in CUDA graphs
    plain     other models on a GPU (4-bit, float32): their own layers, our attention, in graphs
    cpu       float32 models on a CPU: few operators, keys fetched once a batch
    stock     whatever is left: their own layers and the reference attention

Each reads the batch from tables at fixed addresses, writes the logits, and makes every row one
token longer. The cache itself may move: kernels read where it begins from the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveal.kernels.decode_attention import (
    DecodeAttention,
    PagedRows,
    decode_attention_reference,
)
from foveal.kernels.decode_fused import store_cache, write_cache
from foveal.kernels.kept_rows import KeptRows, keep_rows
from foveal.models.cpu_step import CpuStep, why_not_on_cpu
from foveal.models.decoder import Attend, Decoder, Keep, plain_step
from foveal.models.fused_decoder import FusedStep, Workspace, why_not_fused
from foveal.models.packed_lora import PackedLora
from foveal.models.prefill import head_logits
from foveal.rollout.capture import Capture
from foveal.rollout.graphs import GraphStep
from foveal.rollout.tables import BatchTables
from foveal.types import PAGE

BUCKETS = (1, 4, 8, 16, 32, 64, 96, 128)
"""Batch sizes that are captured. Below 32 rows a step takes as long as its weights take to read,
so finer steps would buy nothing."""

Step = Callable[[], None]


class Steps:
    """Steps by number of rows, made when they are first needed.

    Args:
        decoder: the model's parts.
        max_rows: most rows of a batch.
        max_tokens: most tokens of a prompt, and of a completion.
        cache_dtype: of the arena.
        arena: gives the arena, for the forms that are not captured.
        graphs: capture CUDA graphs where there is a GPU.
        fused: use the forms of our own where the model allows them.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_rows: int,
        max_tokens: int,
        cache_dtype: torch.dtype,
        arena: Callable[[], Tensor],
        graphs: bool = True,
        fused: bool = True,
    ) -> None:
        self.decoder, self.cache_dtype, self._arena = decoder, cache_dtype, arena
        device = decoder.device
        self.buckets = [b for b in BUCKETS if b < max_rows]
        self.buckets.append(min(b for b in (*BUCKETS, max_rows) if b >= max_rows))
        most, ratio = self.buckets[-1], decoder.heads // decoder.kv_heads
        self.rotary = decoder.rotary_tables(2 * max_tokens + 1)
        self.tables = BatchTables(most, -(-max_tokens // PAGE) + 1, ratio, decoder.width, device)
        self.address = torch.zeros(1, dtype=torch.int64, device=device)
        """int64 ``[1]``: where the arena begins."""
        wide = torch.promote_types(decoder.dtype, torch.float32)
        self.logits = torch.zeros(most, decoder.vocabulary, dtype=wide, device=device)
        """``[B, V]``, float32 or wider: written by each step."""
        self.why_plain = why_not_fused(decoder) if fused else "the plain step was asked for"
        """Why the step is not the fused one; None if it is."""
        self.lora: PackedLora | None = None
        self._room: Workspace | None = None
        if self.why_plain is None:
            self.lora = PackedLora(decoder.products, decoder.dtype)
            self._room = Workspace(decoder, most)
        self._cpu: CpuStep | None = None
        if fused and why_not_on_cpu(decoder, cache_dtype) is None:
            self._cpu = CpuStep(decoder)
        self.on_gpu_kernels = self.why_plain is None or _attends_in_triton(decoder)
        self.why_no_graphs = None if graphs else "none were asked for"
        """Why steps are not captured on a GPU; None if they are."""
        if any(_waits(module) for module in decoder.model.modules()):
            self.why_no_graphs = "8-bit layers wait for the GPU to find their outliers"
        self._graphs = self.why_no_graphs is None and self.on_gpu_kernels and device.type == "cuda"
        # One pool for all graphs: they never run at the same time.
        self._pool: Any = torch.cuda.graph_pool_handle() if self._graphs else None
        self._steps: dict[tuple[int, bool], Step] = {}
        """By rows, and by whether they keep what goes into the layers."""
        self.capture = Capture(decoder, self.tables.on_device["cached"])
        self.captures = 0
        """Graphs captured so far."""
        self.graph_bytes = 0
        """Device memory that they hold."""
        self.batch = 0
        """Number of the batch that the tables describe; changed by who writes them."""

    def refresh(self, *, unchanged: bool = False) -> None:
        """Take the adapters as they are now; ``unchanged`` says that only their values differ."""
        if self.lora is not None:
            self.lora.refresh(unchanged=unchanged)
        if self._cpu is not None:
            self._cpu.refresh()

    def release(self) -> None:
        """Let go of what was made from the arena."""
        self.address.zero_()
        self.capture.end()
        if self._cpu is not None:
            self._cpu.release()

    @property
    def workspace_bytes(self) -> int:
        """Of what is held between rollouts beside graphs."""
        tensors = [self.logits, *self.tables.on_device.values()]
        tensors += [part for pair in self.rotary.values() for part in pair]
        own = sum(t.numel() * t.element_size() for t in tensors)
        own += 0 if self.lora is None else self.lora.bytes
        return own + (0 if self._room is None else self._room.bytes)

    def bucket(self, rows: int) -> int:
        """Rows of the batch with padding: only kernels need one of a few numbers."""
        return min(b for b in self.buckets if b >= rows) if self.on_gpu_kernels else rows

    def step(self, bucket: int, *, keeping: bool = False) -> Step:
        """One step of a batch of ``bucket`` rows; ``keeping`` as of :meth:`prepare`."""
        if (bucket, keeping) not in self._steps:
            self.prepare(bucket, keeping=keeping)
        return self._steps[bucket, keeping]

    def prepare(self, rows: int, *, keeping: bool = False) -> bool:
        """Compile kernels and capture graphs for every batch of up to ``rows`` rows.

        Args:
            rows: most rows.
            keeping: of steps that keep what goes into the layers, see ``Capture``.

        Returns:
            Whether the tables were overwritten for it.
        """
        if not self.on_gpu_kernels:
            self._steps.setdefault((rows, keeping), self._make(rows, None, keeping))
            return False
        missing = [b for b in self.buckets
                   if b <= self.bucket(rows) and (b, keeping) not in self._steps]  # fmt: skip
        if not missing:
            return False
        self.tables.fill([], self.buckets[-1])
        if keeping:
            self.capture.pause()
        fused = {bucket: self._fused(bucket) for bucket in missing}
        self._compile(fused, keeping)
        before = torch.cuda.memory_allocated() if self._graphs else 0
        # The largest first: the smaller ones find their memory in the pool.
        for bucket in reversed(missing):
            run = self._make(bucket, fused[bucket], keeping)
            if self._graphs:
                with _autocast_without_cache(self.decoder.model):
                    run = GraphStep(run, self._pool)
                self.captures += 1
            self._steps[bucket, keeping] = run
        if self._graphs:
            self.graph_bytes += torch.cuda.memory_allocated() - before
        return True

    def _compile(self, fused: dict[int, FusedStep | None], keeping: bool) -> None:
        """Launch every kernel once, side by side: compilers run on all cores."""
        if not self._graphs:
            return
        steps = [(bucket, step) for bucket, step in fused.items() if step is not None]
        tasks = [
            task
            for bucket, step in steps
            for task in step.warm_tasks(*self._inputs(bucket), kept=self._kept(bucket, keeping))
        ]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda task: task(), tasks))
        torch.cuda.synchronize(self.decoder.device)

    def _fused(self, bucket: int) -> FusedStep | None:
        if self.lora is None or self._room is None:
            return None
        return FusedStep(self.decoder, self.lora, bucket, self.cache_dtype, self._room)

    def _inputs(self, bucket: int) -> tuple[Any, ...]:
        t = self.tables.on_device
        return (
            t["token"][:bucket], self.rotary, t["base_position"][:bucket], self.address,
            self.tables.rows(bucket), self.logits[:bucket],
        )  # fmt: skip

    def _kept(self, bucket: int, keeping: bool) -> KeptRows | None:
        return self.capture.rows.batch(bucket) if keeping else None

    def _make(self, bucket: int, fused: FusedStep | None, keeping: bool) -> Step:
        token_B, rotary, base_B, address, rows, logits_BV = self._inputs(bucket)
        kept = self._kept(bucket, keeping)
        keep: Keep | None = None
        if kept is not None:
            keep = partial(keep_rows, kept) if self.on_gpu_kernels else self.capture.write
        attend = None if fused or self._cpu else self._attend(rows, bucket)

        def run() -> None:
            if fused is not None:
                fused(token_B, rotary, base_B, address, rows, logits_BV, kept)
            elif self._cpu is not None:
                position_B = base_B + rows.cached_B
                arena = self._arena()
                self._cpu(token_B, rotary, position_B, rows, arena, self.batch, logits_BV, keep)
            else:
                assert attend is not None
                position_B = base_B + rows.cached_B
                hidden_BD = plain_step(self.decoder, token_B, rotary, position_B, attend, keep)
                logits_BV.copy_(head_logits(self.decoder.model, hidden_BD))
            rows.cached_B.add_(1)

        return run

    def _attend(self, rows: PagedRows, bucket: int) -> Attend:
        """Cache write and attention of the plain step."""
        d = self.decoder
        if not self.on_gpu_kernels:

            def reference(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                arena = self._arena()
                write_cache(arena, layer, rows, k, v)
                return decode_attention_reference(
                    q, arena, layer, rows, scale=d.scale, window=d.layers[layer].window,
                    softcap=d.score_softcap,
                )  # fmt: skip

            return reference
        kernel = DecodeAttention(bucket, d.heads, d.kv_heads, d.width, self.cache_dtype, d.device)
        layer_stride = 2 * d.kv_heads * PAGE * d.width
        page_stride = layer_stride * len(d.layers)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, out = q.to(d.dtype).contiguous(), torch.empty_like(q, dtype=d.dtype)
            offset = layer * layer_stride
            store_cache(k, v, self.address, offset, page_stride, rows, self.cache_dtype)
            kernel(
                q, self.address, offset, page_stride, rows, out,
                scale=d.scale, window=d.layers[layer].window, softcap=d.score_softcap,
            )  # fmt: skip
            return out

        return attend


def _attends_in_triton(decoder: Decoder) -> bool:
    width = decoder.width
    return decoder.device.type == "cuda" and 16 <= width <= 256 and not width & (width - 1)


def _waits(module: Any) -> bool:
    """Whether a layer asks the device for a number: a capture that it breaks leaves torch's
    random generator in a state of which every later draw fails."""
    return type(module).__name__ == "Linear8bitLt"


@contextlib.contextmanager
def _autocast_without_cache(model: nn.Module) -> Iterator[None]:
    """Autocast that casts anew at each use: a cached copy would be frozen into the graph."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    enabled = torch.is_autocast_enabled("cuda")
    with torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda") if enabled else dtype,
        enabled=enabled,
        cache_enabled=False,
    ):
        yield
