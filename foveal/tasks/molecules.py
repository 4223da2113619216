"""Skeletal formulas of random molecules, drawn by RDKit (the extra ``molecules``).

    formula  the molecular formula
    rings    how many rings
    count    how many of a functional group, or atoms of an element
    group    which of the named functional groups is there
    smiles   the molecule as SMILES; any way to write it is right

Molecules are assembled from fragments, so that no list of known ones helps. With difficulty they
grow, groups are abbreviated (CO2H, OMe), the drawing becomes small, shaky and noisy, and
wedges show the stereochemistry that the SMILES has to hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from foveal.rewards.extract import completion_texts, extract_answer
from foveal.rewards.smiles import smiles_match
from foveal.tasks.base import Drawn, DrawnTask, tolerant_reward
from foveal.tasks.dice import Dice
from foveal.tasks.molecule_graph import Graph, hill
from foveal.tasks.molecule_parts import CAPS, FUSED, RINGS, assembled

if TYPE_CHECKING:
    from types import ModuleType

HEAVY = ((5, 9), (8, 13), (12, 17), (15, 22), (20, 28))
"""Atoms besides hydrogen, by difficulty; a few more where an answer needs them."""

TEMPLATES = {
    "formula": (
        "What is the molecular formula of this molecule? Answer like C6H12O2.",
        "Give the molecular formula of the molecule, hydrogens included, like C6H12O2.",
    ),
    "rings": (
        "How many rings does the molecule have? Two fused rings count as two.",
        "Count the rings of the molecule; fused rings count one by one.",
    ),
    "count": ("How many {} does the molecule have?", "Count the {} of the molecule."),
    "group": (
        "Which one of these does the molecule contain: {}?",
        "One of these functional groups is in the molecule: {}. Which one?",
    ),
    "smiles": (
        "Write the molecule as SMILES{}.",
        "Give a SMILES string of the drawn molecule{}.",
    ),
}
COUNTED = {
    "hydroxyl": "hydroxyl groups (OH, those of acids too)",
    "carbonyl": "C=O double bonds (those of acids, esters and amides too)",
    "halogen": "halogen atoms",
    "nitrogen": "nitrogen atoms",
    "oxygen": "oxygen atoms",
    "carbon": "carbon atoms",
    "methyl": "methyl groups (CH3)",
    "ester": "ester groups",
    "amide": "amide groups",
}
WITH_GROUP = {
    "hydroxyl": ("O", "O", "C(=O)O"),
    "carbonyl": ("C=O", "C(=O)C", "C(=O)N", "OC(=O)C", "C(=O){a}", "C(=O)O{a}"),
    "halogen": ("F", "Cl", "Br"),
    "nitrogen": ("N", "C#N", "N{a}", "c{r}c{}c{}nc{}c{r}{}"),
    "oxygen": ("O", "OC", "C=O", "O{a}"),
    "carbon": (),
    "methyl": (),
    "ester": ("OC(=O)C", "C(=O)O{a}", "OC(=O){a}"),
    "amide": ("C(=O)N", "NC(=O)C", "C(=O)N{a}"),
}
"""Fragments of which each has the group once."""
PATTERNS = {
    "hydroxyl": "[OX2H1][#6]",
    "carbonyl": "[CX3]=[OX1]",
    "halogen": "[F,Cl,Br]",
    "nitrogen": "[#7]",
    "oxygen": "[#8]",
    "carbon": "[#6]",
    "methyl": "[CX4H3]",
    "alcohol": "[OX2H1][#6;!$([CX3]=O)]",
    "carboxylic acid": "[CX3](=O)[OX2H1]",
    "ester": "[CX3](=O)[OX2H0][#6]",
    "amide": "[CX3](=O)[NX3]",
    "aldehyde": "[CX3;H1,H2](=O)",
    "ketone": "[#6][CX3](=O)[#6]",
    "amine": "[NX3;+0;!$(N[CX3]=O)]",
    "ether": "[#6;!$([CX3]=O)][OX2][#6;!$([CX3]=O)]",
    "nitrile": "[CX2]#[NX1]",
    "nitro": "[NX3+](=O)[O-]",
    "thiol": "[SX2H1]",
}
"""SMARTS of what is counted or named."""
NAMED = {
    "alcohol": "O",
    "carboxylic acid": "C(=O)O",
    "ester": "OC(=O)C",
    "amide": "C(=O)N",
    "aldehyde": "C=O",
    "ketone": "C(=O)C",
    "amine": "N",
    "ether": "OC",
    "nitrile": "C#N",
    "nitro": "[N+](=O)[O-]",
    "thiol": "S",
}
"""Groups to choose from, and a fragment of each."""


class MoleculesTask(DrawnTask):
    """The task family "molecules"; its rows need RDKit, its name and reward for words do not."""

    name: str = "molecules"
    kinds: ClassVar[tuple[str, ...]] = ("formula", "rings", "count", "group", "smiles")
    needs: ClassVar[str | None] = "rdkit"

    def draw(self, dice: Dice, difficulty: int) -> Drawn:
        from foveal.tasks.molecule_drawing import drawing

        chem = chemistry()
        kind = dice.pick(self.kinds)
        make = {"rings": _rings, "count": _count, "group": _group}.get(kind, _any)
        molecule, facts = make(chem, dice, difficulty)
        if kind == "smiles" and difficulty >= 4:
            molecule = _with_centres(chem, dice, molecule)
            facts["stereo"] = "@" in chem.MolToSmiles(molecule)
        said = facts.get("options") or facts.get("asked")
        words = COUNTED[said] if isinstance(said, str) else ", ".join(said or ())
        if kind == "smiles":
            words = ", stereochemistry included" if facts.get("stereo") else ""
        question = dice.pick(TEMPLATES[kind]).format(words)
        answer = facts.pop("answer", None) or _answer(chem, molecule, kind)
        root = dice.below(molecule.GetNumAtoms())
        smiles = chem.MolToSmiles(
            molecule, rootedAtAtom=root, canonical=False, kekuleSmiles=not facts.get("stereo")
        )
        metadata = {"kind": kind, "smiles": smiles, **facts, "tolerance": 0.0}
        return Drawn(drawing(dice, molecule, difficulty), question, answer, metadata)

    def reference_answer(self, metadata: dict[str, Any]) -> str:
        """From atoms and bonds of the SMILES, with hydrogens and rings counted here."""
        chem = chemistry()
        molecule = chem.MolFromSmiles(metadata["smiles"])
        if metadata["kind"] == "smiles":
            return chem.MolToSmiles(molecule)
        chem.Kekulize(molecule, clearAromaticFlags=True)
        graph = Graph.of(molecule)
        if metadata["kind"] == "formula":
            return graph.formula()
        if metadata["kind"] == "rings":
            return str(graph.rings())
        if metadata["kind"] == "count":
            return str(graph.count(metadata["asked"]))
        return next(name for name in metadata["options"] if graph.count(name))

    def reward(self, prompts: Any, completions: Any, **columns: Any) -> list[float]:
        """1.0 for the same molecule (``smiles_match``), the same formula however it is set, or
        the row's word or number (``tolerant_reward``), else 0.0."""
        rewards = tolerant_reward(prompts, completions, **columns)
        rows = zip(completions, columns["answer"], columns["metadata"], strict=True)
        for i, (completion, answer, facts) in enumerate(rows):
            if facts["kind"] == "smiles":
                rewards[i] = smiles_match([completion], answer=[answer])[0] or 0.0
            elif facts["kind"] == "formula":
                rewards[i] = _formula_score(completion, answer)
        return rewards


def chemistry() -> ModuleType:
    """``rdkit.Chem``.

    Raises:
        ImportError: where RDKit is not installed.
    """
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ImportError(
            f"the task 'molecules' draws with RDKit, which is not installed ({error}); install "
            "it with \"pip install 'foveal[molecules]'\" or 'pip install rdkit'"
        ) from error
    return Chem


def _formula_score(completion: str | Sequence[Any], answer: str) -> float:
    (text,) = completion_texts([completion])
    said = read_formula(extract_answer(text).text)
    return float(said is not None and said == read_formula(answer))


def read_formula(text: str) -> Counter[str] | None:
    """Atoms of each element of "C6H12O2", "C₆H₁₂O₂" or "C_{6}H_{12}O_2"; None for other text."""
    digits = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789", "_{}$` .*")
    text = re.sub(r"\\(?:mathrm|text|ce)", "", text).translate(digits)
    if not re.fullmatch(r"(?:[A-Z][a-z]?[0-9]{0,4})+", text):
        return None
    counts: Counter[str] = Counter()
    for symbol, number in re.findall(r"([A-Z][a-z]?)([0-9]*)", text):
        if symbol in counts:
            return None
        counts[symbol] = int(number or 1)
    return counts


def _matches(chem: ModuleType, molecule: Any, group: str) -> int:
    return len(molecule.GetSubstructMatches(chem.MolFromSmarts(PATTERNS[group])))


def _answer(chem: ModuleType, molecule: Any, kind: str) -> str:
    from rdkit.Chem import rdMolDescriptors

    if kind == "smiles":
        return chem.MolToSmiles(molecule)
    return hill(read_formula(_uncharged(rdMolDescriptors.CalcMolFormula(molecule))) or Counter())


def _uncharged(formula: str) -> str:
    return formula.rstrip("+-")


def _heavy(dice: Dice, difficulty: int) -> int:
    return dice.between(*HEAVY[difficulty - 1])


def _any(chem: ModuleType, dice: Dice, difficulty: int) -> tuple[Any, dict[str, Any]]:
    parts = [dice.pick(RINGS)] if dice.below(4) < difficulty else []
    if difficulty > 2 and dice.below(3) == 0:
        parts.append(dice.pick(FUSED))
    parts.append(dice.pick(CAPS))
    return _molecule(chem, dice, parts, difficulty), {}


def _molecule(chem: ModuleType, dice: Dice, parts: list[str], difficulty: int) -> Any:
    return chem.MolFromSmiles(assembled(dice, _heavy(dice, difficulty), parts, difficulty))


def _rings(chem: ModuleType, dice: Dice, difficulty: int) -> tuple[Any, dict[str, Any]]:
    wanted = dice.between(max(0, difficulty - 3), 4 + difficulty // 2)
    while True:
        parts: list[str] = []
        while (missing := wanted - _rings_of(parts)) > 0:
            fused = missing > 1 and difficulty > 1 and dice.below(3) == 0
            # Small rings keep easy pictures easy.
            parts.append(dice.pick(FUSED if fused else RINGS[2:7] if difficulty < 3 else RINGS))
        molecule = _molecule(chem, dice, parts, difficulty)
        if molecule.GetRingInfo().NumRings() == wanted:
            return molecule, {"answer": str(wanted)}


def _rings_of(parts: list[str]) -> int:
    return sum(2 if "{s}" in part else 1 for part in parts)


def _count(chem: ModuleType, dice: Dice, difficulty: int) -> tuple[Any, dict[str, Any]]:
    groups = list(COUNTED)[: 7 + 2 * (difficulty > 2)]
    group = dice.pick(groups)
    wanted = dice.between(0, 4 + difficulty // 2)
    if not WITH_GROUP[group]:
        molecule, _ = _any(chem, dice, difficulty)
        return molecule, {"asked": group, "answer": str(_matches(chem, molecule, group))}
    while True:
        parts = [dice.pick(WITH_GROUP[group]) for _ in range(wanted)]
        molecule = _molecule(chem, dice, parts, difficulty)
        if _matches(chem, molecule, group) == wanted:
            return molecule, {"asked": group, "answer": str(wanted)}


def _group(chem: ModuleType, dice: Dice, difficulty: int) -> tuple[Any, dict[str, Any]]:
    wanted = dice.pick(list(NAMED))
    while True:
        molecule = _molecule(chem, dice, [NAMED[wanted]], difficulty)
        absent = [name for name in NAMED if not _matches(chem, molecule, name)]
        options = 3 + difficulty // 2
        if wanted not in absent and len(absent) >= options - 1:
            names = dice.shuffled([wanted, *dice.sample(absent, options - 1)])
            return molecule, {"options": names, "answer": wanted}


def _with_centres(chem: ModuleType, dice: Dice, molecule: Any) -> Any:
    """The molecule with a hand at each possible centre outside of rings, if there are any."""
    hands = (chem.ChiralType.CHI_TETRAHEDRAL_CW, chem.ChiralType.CHI_TETRAHEDRAL_CCW)
    centres = chem.FindMolChiralCenters(
        molecule, includeUnassigned=True, useLegacyImplementation=False
    )
    for index, _ in centres:
        atom = molecule.GetAtomWithIdx(index)
        if not atom.IsInRing():
            atom.SetChiralTag(dice.pick(hands))
    chem.AssignStereochemistry(molecule, cleanIt=True, force=True)
    # Read again: a tag set by hand can lead MolToSmiles to another hand for another first atom.
    return chem.MolFromSmiles(chem.MolToSmiles(molecule))
