"""Compile Triton kernels for cards that are not there.

The compiler needs no GPU. That a kernel compiles for a T4 (7.5) and how much shared memory it
takes there can so be tested on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

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
    divisible: Iterable[str] = (),
) -> Any:
    """The compiled kernel, with ``.metadata.shared`` (bytes) and ``.asm["ptx"]``.

    Args:
        kernel: a ``@triton.jit`` function.
        signature: type of each argument that is not a constexpr, as Triton writes it: ``"*bf16"``,
            ``"*fp32"``, ``"*i64"``, ``"*i1"`` (bool), ``"i32"``, ``"fp32"``.
        constexprs: value of each constexpr argument, and of any argument fixed at compile time
            (None for an absent pointer). Every argument is in exactly one of the two.
        capability: compute capability times ten, such as 75.
        divisible: arguments that are multiples of 16, as aligned addresses and most strides are.
            A launch finds this out by itself; without it, loads are one element each.
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
    wrong = set(divisible) - signature.keys()
    if wrong:
        raise ValueError(f"divisible names {sorted(wrong)}, which are not in the signature")
    attrs = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    return triton_compile(
        ASTSource(fn=kernel, signature=types, constexprs=constexprs, attrs=attrs),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )


class Recorder:
    """Stands where a kernel stands and notes what it would be launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[Launch] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.launches.append(Launch(self.kernel, args, options))

        return launch


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with tensors that need hold nothing (meta tensors do)."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def variant(self) -> tuple[Any, ...]:
        """What decides which compiled form of the kernel runs."""
        signature, constants, divisible = self._described()
        options = {k: v for k, v in self.options.items() if k not in constants}
        parts = (signature, constants, options)
        return (self.kernel.__name__, *(tuple(sorted(p.items())) for p in parts), divisible)

    def compile_for(self, capability: int) -> Any:
        """As the module's ``compile_for``, with types and alignment taken from the launch."""
        signature, constants, divisible = self._described()
        return compile_for(
            self.kernel,
            signature,
            constants,
            capability,
            self.options.get("num_warps", 4),
            self.options.get("num_stages"),
            divisible,
        )

    def _described(self) -> tuple[dict[str, str], dict[str, Any], tuple[str, ...]]:
        names = self.kernel.arg_names
        values = dict(zip(names, self.args, strict=False))
        values |= {name: value for name, value in self.options.items() if name in names}
        fixed = {p.name for p in self.kernel.params if p.is_constexpr}
        # Triton fixes an argument of 1 at compile time.
        fixed |= {name for name, value in values.items() if type(value) is int and value == 1}
        signature = {n: _type_name(v) for n, v in values.items() if n not in fixed}
        divisible = [n for n in signature if _is_divisible(values[n])]
        return signature, {n: v for n, v in values.items() if n in fixed}, tuple(divisible)


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_divisible(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        # A fresh allocation is aligned; only the place inside it can spoil that.
        return value.storage_offset() * value.element_size() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
