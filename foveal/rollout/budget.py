"""How much memory the KV cache may take, decided before it is taken."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from foveal.rollout.pages import pages_for
from foveal.rollout.scheduler import Request

GIB = 1 << 30
DEFAULT_UTILIZATION = 0.9
CPU_BYTES = 4 * GIB
RESERVE = 1 * GIB
"""Left free for the prefill's own tensors."""


@dataclass(frozen=True, slots=True)
class CacheBudget:
    """Bounds of the cache.

    ``utilization`` is the part of the GPU that may be in use in all, weights included, while
    rollouts run; ``cache_bytes`` bounds the cache itself and goes first.
    """

    utilization: float | None = None
    cache_bytes: int | None = None

    def pages_wanted(self, requests: Rows[Request], max_rows: int) -> int:
        """Pages with which no row ever has to wait or step back."""
        prompts = sum(pages_for(r.prompt_tokens) for r in requests)
        own = sorted((pages_for(r.max_tokens) for r in requests for _ in range(r.n)), reverse=True)
        return prompts + sum(own[:max_rows])

    def bytes_allowed(self, device: torch.device) -> int:
        return self._available(device) if self.cache_bytes is None else self.cache_bytes

    def _available(self, device: torch.device) -> int:
        """Bytes that rollouts may still take of the device, for whatever they need."""
        if device.type != "cuda":
            return CPU_BYTES
        free, total = torch.cuda.mem_get_info(device)
        # What torch keeps without using it can be had too.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        in_use = total - free - idle
        allowed = int(total * (self.utilization or DEFAULT_UTILIZATION)) - in_use - RESERVE
        return max(0, allowed)

    def pages(
        self,
        wanted: int,
        page_bytes: int,
        device: torch.device,
        requests: Rows[Request],
        held: int = 0,
        reserved: int = 0,
    ) -> int:
        """Pages to take, beside the scratch page.

        Args:
            wanted: from :meth:`pages_wanted`.
            page_bytes: of one page, all layers.
            device: of the cache.
            requests: what has to fit, each by itself.
            held: bytes of the present cache, which would be given back.
            reserved: bytes of these that the cache leaves for layer inputs.

        Raises:
            ValueError: if one row of some request alone would not fit; the message has the
                numbers.
        """
        allowed = self.bytes_allowed(device)
        if device.type == "cuda" and self.cache_bytes is None:
            allowed += held
        if reserved:
            _check_reserved(reserved, self._available(device) + held)
            allowed = allowed - reserved if self.cache_bytes is None else allowed
        pages = min(wanted, allowed // page_bytes - 1)
        for request in requests:
            least = pages_for(request.prompt_tokens) + pages_for(request.max_tokens)
            if least > pages:
                raise ValueError(
                    f"prompt {request.payload.prompt.index} with {request.prompt_tokens} tokens "
                    f"and a completion of {request.max_tokens} needs {least * page_bytes / GIB:.2f}"
                    f" GiB of KV cache, but {max(0, allowed) / GIB:.2f} GiB may be taken"
                    + (f" beside {reserved / GIB:.2f} of layer inputs" if reserved else "")
                    + "; lower max_tokens, shorten the prompt, or raise gpu_memory_utilization"
                )
        return pages


def _check_reserved(reserved: int, available: int) -> None:
    if reserved > available:
        raise ValueError(
            f"keeping the layer inputs of a rollout takes up to {reserved / GIB:.2f} GiB, but "
            f"{max(0, available) / GIB:.2f} GiB may be taken; lower max_completion_length or the "
            "completions of a rollout, or set gradient_checkpointing=True"
        )
