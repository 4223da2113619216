"""Where time goes, kernel by kernel (on a CPU: operator by operator)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import torch

GROUPS = {
    "attention": r"flash|fmha|attention|attn|parts_kernel|join_kernel",
    "norms": r"norm|rsqrt|rms",
    "rotary and cache": r"rotary|rope|cache|index_put|index_copy|scatter|catarray|aten::cat",
    "sampling": r"block_stats|pick_kernel|sampl|softmax|argmax|topk|sort|multinomial|philox|gather",
    "matrix products": r"gated_kernel|linear|gemm|gemv|nvjet|cutlass|cublas|splitk|aten::\w*mm",
}
"""Group -> pattern in a kernel's name; the first that is found counts, the rest is "other"."""

TRAINING_GROUPS = {
    "copies to and from the host": r"memcpy (htod|dtoh)",
    "attention": r"flash|fmha|attention|attn|efficient",
    "norms": r"norm|rsqrt|rms|meanops|pow_tensor|aten::(mean|pow)",
    "head and softmax": r"softmax|logprob|logsumexp|logits|gather",
    "matrix products": rf"lora|{GROUPS['matrix products']}",
    "elementwise": (
        r"elementwise|copy|catarray|reduce|rotary|rope|silu|gelu|swiglu|gated|memcpy|memset|fill"
        r"|aten::(add|mul|sub|div|neg|cat|sum|exp|where|zero|index|slice|select)"
    ),
}
"""The same for a training pass. The head's products are among the matrix products."""


def group_of(kernel: str, groups: Mapping[str, str] = GROUPS) -> str:
    found = (group for group, pattern in groups.items() if re.search(pattern, kernel.lower()))
    return next(found, "other")


def decode_kernels(
    generate: Callable[[int], object], device: torch.device, *, few: int = 4, many: int = 24
) -> dict[str, float]:
    """Milliseconds of each kernel in one decode step, the longest first.

    Two rollouts of different length are taken apart: pictures and prompts cost the same in both,
    so the difference is ``many - few`` steps of decoding and nothing else.

    Args:
        generate: runs a rollout of so many tokens.
        device: where.
        few: tokens of the shorter rollout.
        many: tokens of the longer one.
    """
    generate(few)
    short, long = (profile_once(partial(generate, tokens), device) for tokens in (few, many))
    steps = many - few
    per_step = {
        name: (milliseconds - short.get(name, (0, 0.0))[1]) / steps
        for name, (calls, milliseconds) in long.items()
        # What is not called more often belongs to pictures and prompts: its difference is noise.
        if calls > short.get(name, (0, 0.0))[0]
    }
    return dict(sorted(per_step.items(), key=lambda item: -item[1]))


def grouped(kernels: Mapping[str, float], groups: Mapping[str, str] = GROUPS) -> dict[str, float]:
    """Sums of milliseconds by group, every group present."""
    sums = dict.fromkeys([*groups, "other"], 0.0)
    for name, milliseconds in kernels.items():
        sums[group_of(name, groups)] += milliseconds
    return sums


def print_kernels(kernels: dict[str, float], top: int = 25) -> None:
    print(f"ms a step, {sum(kernels.values()):.3f} in all:")
    for name, milliseconds in list(kernels.items())[:top]:
        print(f"  {milliseconds:8.3f}  {group_of(name):16}  {name[:100]}")
    for group, milliseconds in grouped(kernels).items():
        print(f"  {milliseconds:8.3f}  {group}", flush=True)


def print_profile(kernels: Mapping[str, tuple[int, float]], top: int = 25) -> dict[str, float]:
    """Show what :func:`profile_once` found in a training pass.

    Returns:
        Seconds by group.
    """
    times = {name: milliseconds for name, (_, milliseconds) in kernels.items()}
    print(f"ms in kernels, {sum(times.values()):.1f} in all; calls; group; kernel:")
    for name, milliseconds in sorted(times.items(), key=lambda item: -item[1])[:top]:
        group = group_of(name, TRAINING_GROUPS)
        print(f"  {milliseconds:10.2f}  {kernels[name][0]:7}  {group:27}  {name[:100]}")
    sums = grouped(times, TRAINING_GROUPS)
    for group, milliseconds in sums.items():
        print(f"  {milliseconds:10.2f}  {group}", flush=True)
    return {group: milliseconds / 1e3 for group, milliseconds in sums.items()}


def profile_once(call: Callable[[], object], device: torch.device) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds of each kernel in one ``call()``."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    events = seen.key_averages()
    if on_gpu:
        kernels = [e for e in events if e.device_type == DeviceType.CUDA]
        return {e.key: (e.count, e.self_device_time_total / 1e3) for e in kernels}
    return {e.key: (e.count, e.self_cpu_time_total / 1e3) for e in events}
