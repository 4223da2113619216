"""A molecule as atoms and bonds, read without chemistry software's perception of rings or groups.

``reference_answer`` of the molecules counts here; the generator counts with RDKit's patterns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VALENCES = {
    "C": (4,), "N": (3,), "O": (2,), "S": (2, 4, 6), "F": (1,), "Cl": (1,), "Br": (1,),
}  # fmt: skip
HALOGENS = ("F", "Cl", "Br")


@dataclass(slots=True)
class Graph:
    """``bonds[i]`` holds (other atom, order 1 to 3) of atom ``i``; aromatic bonds alternate."""

    symbols: list[str]
    charges: list[int]
    bonds: list[list[tuple[int, int]]]

    @classmethod
    def of(cls, molecule: Any) -> Graph:
        """From an RDKit molecule whose bonds are single, double or triple (``Kekulize``)."""
        atoms = list(molecule.GetAtoms())
        bonds: list[list[tuple[int, int]]] = [[] for _ in atoms]
        for bond in molecule.GetBonds():
            a, b = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            order = int(bond.GetBondTypeAsDouble())
            bonds[a].append((b, order))
            bonds[b].append((a, order))
        symbols = [atom.GetSymbol() for atom in atoms]
        return cls(symbols, [atom.GetFormalCharge() for atom in atoms], bonds)

    def hydrogens(self, i: int) -> int:
        """Implicit hydrogens of atom ``i``, from its valence, charge and bonds."""
        used = sum(order for _, order in self.bonds[i])
        # N+ has a bond more than N, O- one fewer than O.
        free = [v + self.charges[i] - used for v in VALENCES[self.symbols[i]]]
        return next(n for n in free if n >= 0)

    def formula(self) -> str:
        """Hill order: carbon, hydrogen, then the others by letter."""
        counts = Counter(self.symbols)
        counts["H"] = sum(map(self.hydrogens, range(len(self.symbols))))
        return hill(counts)

    def rings(self) -> int:
        """Bonds - atoms + connected parts."""
        seen: set[int] = set()
        parts = 0
        for start in range(len(self.symbols)):
            if start in seen:
                continue
            parts += 1
            stack = [start]
            while stack:
                at = stack.pop()
                if at not in seen:
                    seen.add(at)
                    stack += [other for other, _ in self.bonds[at]]
        return sum(map(len, self.bonds)) // 2 - len(self.symbols) + parts

    def count(self, group: str) -> int:
        """How many of a group of ``GROUPS`` there are."""
        return sum(GROUPS[group](self, i) for i in range(len(self.symbols)))

    def next_to(self, i: int, symbol: str, order: int) -> list[int]:
        return [j for j, o in self.bonds[i] if self.symbols[j] == symbol and o == order]


def hill(counts: Counter[str]) -> str:
    """The formula of a molecule that holds carbon, in Hill order."""
    order = [s for s in ("C", "H") if counts[s]] + sorted(set(counts) - {"C", "H"})
    return "".join(f"{s}{counts[s] if counts[s] > 1 else ''}" for s in order)


def _carbon_of(g: Graph, i: int, *symbols: str) -> list[tuple[str, int]]:
    """Symbol and index of the neighbours of a C=O carbon by single bonds, else nothing."""
    if g.symbols[i] != "C" or not g.next_to(i, "O", 2):
        return []
    beside = [(g.symbols[j], j) for j, order in g.bonds[i] if order == 1]
    return [pair for pair in beside if pair[0] in symbols]


def _is_carbonyl(g: Graph, i: int) -> bool:
    return bool(g.symbols[i] == "C" and g.next_to(i, "O", 2))


def _on_carbonyl(g: Graph, i: int) -> bool:
    return any(_is_carbonyl(g, j) for j, _ in g.bonds[i])


def _is_single(g: Graph, i: int, symbol: str, carbons: int) -> bool:
    """A ``symbol`` with single bonds to ``carbons`` carbons and to no other atom."""
    singles = len(g.next_to(i, "C", 1)) == len(g.bonds[i]) == carbons
    return g.symbols[i] == symbol and singles


def _alcohol(g: Graph, i: int) -> bool:
    return _is_single(g, i, "O", 1) and not _on_carbonyl(g, i)


def _amine(g: Graph, i: int) -> bool:
    carbons = len(g.bonds[i])
    return carbons > 0 and _is_single(g, i, "N", carbons) and not _on_carbonyl(g, i)


def _acid(g: Graph, i: int) -> bool:
    return any(not g.charges[j] and g.hydrogens(j) for _, j in _carbon_of(g, i, "O"))


def _ester(g: Graph, i: int) -> bool:
    return any(len(g.next_to(j, "C", 1)) == 2 for _, j in _carbon_of(g, i, "O"))


def _plain_carbonyl(hydrogens: bool) -> Callable[[Graph, int], bool]:
    def test(g: Graph, i: int) -> bool:
        alone = _is_carbonyl(g, i) and not _carbon_of(g, i, "O", "N", "S", *HALOGENS)
        return alone and (g.hydrogens(i) > 0) == hydrogens

    return test


def _nitro(g: Graph, i: int) -> bool:
    return g.symbols[i] == "N" and len(g.next_to(i, "O", 1) + g.next_to(i, "O", 2)) == 2


GROUPS: dict[str, Callable[[Graph, int], bool]] = {
    "hydroxyl": lambda g, i: _is_single(g, i, "O", 1),
    "carbonyl": _is_carbonyl,
    "halogen": lambda g, i: g.symbols[i] in HALOGENS,
    "nitrogen": lambda g, i: g.symbols[i] == "N",
    "oxygen": lambda g, i: g.symbols[i] == "O",
    "carbon": lambda g, i: g.symbols[i] == "C",
    "methyl": lambda g, i: g.symbols[i] == "C" and g.hydrogens(i) == 3,
    "alcohol": _alcohol,
    "carboxylic acid": _acid,
    "ester": _ester,
    "amide": lambda g, i: bool(_carbon_of(g, i, "N")),
    "aldehyde": _plain_carbonyl(True),
    "ketone": _plain_carbonyl(False),
    "amine": _amine,
    "ether": lambda g, i: _is_single(g, i, "O", 2) and not _on_carbonyl(g, i),
    "nitrile": lambda g, i: g.symbols[i] == "C" and bool(g.next_to(i, "N", 3)),
    "nitro": _nitro,
    "thiol": lambda g, i: _is_single(g, i, "S", 1),
}
"""Whether atom ``i`` is the one by which a group is counted."""
