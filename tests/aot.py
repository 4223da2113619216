"""Compile Triton kernels for cards that are not there.

The compiler needs no GPU. That a kernel compiles for a T4 (7.5) and how much shared memory it
takes there can so be tested on any machine.
"""

from __future__ import annotations

from typing import Any

SHARED_BYTES = {75: 64 * 1024, 80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Shared memory that one block may have, by compute capability (CUDA C++ Programming Guide,
table of technical specifications)."""

CAPABILITIES = tuple(SHARED_BYTES)
"""The cards that every kernel must compile for: T4, A100, L4 and 4090, H100."""


def compile_for(
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int | None = None,
) -> Any:
    """The compiled kernel, with ``.metadata.shared`` (bytes) and ``.asm["ptx"]``.

    Args:
        kernel: a ``@triton.jit`` function.
        signature: type of each argument that is not a constexpr, as Triton writes it: ``"*bf16"``,
            ``"*fp32"``, ``"*i64"``, ``"*i1"`` (bool), ``"i32"``, ``"fp32"``.
        constexprs: value of each constexpr argument, and of any argument fixed at compile time
            (None for an absent pointer). Every argument is in exactly one of the two.
        capability: compute capability times ten, such as 75.
    """
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    both = signature.keys() & constexprs.keys()
    missing = set(kernel.arg_names) - signature.keys() - constexprs.keys()
    unknown = (signature.keys() | constexprs.keys()) - set(kernel.arg_names)
    if both or missing or unknown:
        raise ValueError(
            f"arguments of {kernel.__name__}: {sorted(both)} given twice, {sorted(missing)} "
            f"missing, {sorted(unknown)} unknown; give each one's type or its value"
        )
    types = {
        name: "constexpr" if name in constexprs else signature[name] for name in kernel.arg_names
    }
    options: dict[str, Any] = {"num_warps": num_warps}
    if num_stages is not None:
        options["num_stages"] = num_stages
    return triton_compile(
        ASTSource(fn=kernel, signature=types, constexprs=constexprs),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
