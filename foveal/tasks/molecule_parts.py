"""Random molecules, assembled as a tree of fragments and written as SMILES.

A fragment is SMILES with slots. ``{}`` takes any other fragment, ``{a}`` one that begins with a
carbon of a chain or a ring: after an oxygen, a nitrogen or a C=O, so that no peroxide, anhydride
or carbonate comes about. ``{r}`` and ``{s}`` become numbers of ring closures. Valences hold by
construction; nothing here needs RDKit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from foveal.tasks.dice import Dice

CHAINS = ("C{}", "C{}C{}", "C{}{}C{}", "C{}C{}C{}")
LINKS = ("O{a}", "N{a}", "C(=O){a}", "C(=O)O{a}", "C(=O)N{a}", "S{a}", "OC(=O){a}", "NC(=O){a}")
RINGS = (
    "c{r}c{}c{}c{}c{}c{r}{}",
    "c{r}c{}c{}c{}c{}c{r}{}",
    "C{r}C{}C{}C{}C{}C{r}{}",
    "C{r}C{}C{}C{}C{r}{}",
    "C{r}C{}C{r}{}",
    "C{r}C{}C{}C{r}{}",
    "c{r}c{}c{}nc{}c{r}{}",
    "c{r}c{}c{}sc{r}{}",
    "C{r}C{}OC{}C{r}{}",
    "N{r}C{}C{}C{}C{}C{r}{}",
    "N{r}CC{}OC{}C{r}",
)
FUSED = (
    "c{r}c{}c{}c{s}c{}c{}c{}c{}c{s}c{r}{}",
    "c{r}c{}nc{s}c{}c{}c{}c{}c{s}c{r}{}",
    "C{r}C{}C{}c{s}c{}c{}c{}c{}c{s}C{r}{}",
    "C{r}C{}C{}C{s}C{}C{}C{}C{s}C{r}{}",
)
"""Two rings each."""
CAPS = (
    "O",
    "N",
    "F",
    "Cl",
    "Br",
    "S",
    "C#N",
    "C=O",
    "C(=O)O",
    "C(=O)N",
    "[N+](=O)[O-]",
    "C",
    "C(C)C",
    "C(C)(C)C",
    "OC",
    "C(F)(F)F",
    "C(=O)C",
    "OC(=O)C",
    "NC(=O)C",
    "N(C)C",
)

_SLOT = re.compile(r"\{a?\}")


@dataclass(slots=True)
class _Piece:
    """A fragment in the tree; ``filled`` has what each slot holds."""

    template: str
    filled: list[_Piece | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.filled = [None] * len(_SLOT.findall(self.template))


def assembled(dice: Dice, heavy: int, parts: list[str], difficulty: int) -> str:
    """SMILES of a molecule that holds ``parts`` and about ``heavy`` atoms besides hydrogen.

    What is added to reach the size are chains, and with difficulty links, caps and rings; they
    may hold the groups of ``parts`` too, so a caller that wants a number of them has to count.
    """
    wanted = list(parts)
    while (room := heavy - sum(map(atoms_of, wanted))) > 0:
        filler = _filler(dice, difficulty)
        wanted.append(filler if atoms_of(filler) <= room else "C{}")
    inner = dice.shuffled([part for part in wanted if _SLOT.search(part)])
    # With few slots the caps would not find a place.
    while sum(len(_SLOT.findall(part)) for part in inner) < len(wanted) + 1:
        inner.append("C{}C{}C{}")
        wanted.append("C{}C{}C{}")
    caps = dice.shuffled([part for part in wanted if not _SLOT.search(part)])
    starts = [i for i, part in enumerate(inner) if not _is_bound(part)] or [0]
    root = _Piece(inner.pop(starts[0]))
    for template in (*inner, *caps):
        _attach(dice, root, template)
    return _written(root, [0])


def atoms_of(template: str) -> int:
    """Atoms of a fragment or of SMILES, hydrogen not counted."""
    return len(re.findall(r"Cl|Br|[BCNOFSIcnos]", _SLOT.sub("", template).replace("{s}", "")))


def _filler(dice: Dice, difficulty: int) -> str:
    kind = dice.below(10)
    if kind < 4 or (difficulty == 1 and kind < 8):
        return dice.pick(CHAINS)
    if kind < 6:
        return dice.pick(LINKS)
    return dice.pick(CAPS) if kind < 8 else dice.pick(RINGS)


def _is_bound(template: str) -> bool:
    """Whether it begins with another atom than carbon, or with a C=O or C#N."""
    return template[0] not in "Cc" or template.startswith(("C(=O)", "C=O", "C#N", "Cl"))


def _attach(dice: Dice, root: _Piece, template: str) -> None:
    """At a free slot that may hold it; it is left out if there is none."""
    places = []
    stack = [root]
    while stack:
        piece = stack.pop()
        for i, slot in enumerate(_SLOT.findall(piece.template)):
            held = piece.filled[i]
            if held is not None:
                stack.append(held)
            elif slot == "{}" or not _is_bound(template):
                places.append((piece, i))
    if places:
        piece, i = dice.pick(places)
        piece.filled[i] = _Piece(template)


def _written(piece: _Piece, closures: list[int]) -> str:
    text, slots = piece.template, _SLOT.findall(piece.template)
    for mark in ("{r}", "{s}"):
        if mark in text:
            closures[0] += 1
            text = text.replace(mark, f"%{closures[0] + 9}")
    held = [f"({_written(part, closures)})" if part is not None else "" for part in piece.filled]
    # An oxygen or C=O that ends the chain would be another group than the one that was chosen.
    free = [h or ("(C)" if slot == "{a}" else "") for h, slot in zip(held, slots, strict=True)]
    pieces = _SLOT.split(text)
    return pieces[0] + "".join(h + rest for h, rest in zip(free, pieces[1:], strict=True))
