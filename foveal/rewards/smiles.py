"""Molecules in SMILES, compared as molecules by RDKit (the extra ``molecules``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from foveal.rewards.extract import completion_texts, extract_answer, reference_texts

MAX_CHARACTERS = 1000
"""Longer answers earn nothing; parsing them takes too long."""
_WRAPPING = re.compile(r"""^(?:[\s`$"'.]|\*\*)+|(?:[\s`$"'.]|\*\*)+$""")


def smiles_match(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1.0 where the answer is the molecule of the reference, however it is written, else 0.0.

    Canonical SMILES are compared, stereochemistry included. None where the reference is no valid
    SMILES (a mixed data set). An answer with white space in it, or without an atom, earns nothing.

    Columns: ``answer`` (or ``solution``). Raises ImportError where RDKit is not installed, and
    ValueError naming a row that has no reference.
    """
    return SmilesSimilar(floor=1.0)(completions, **columns)


@dataclass(frozen=True)
class SmilesSimilar:
    """The reward function that ``smiles_similar`` returns; a class so that it can be pickled."""

    floor: float

    __name__ = "smiles_similar"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        chem = _chem()
        references = [_molecule(chem, text) for text in reference_texts(columns, len(completions))]
        answers = [
            _molecule(chem, extract_answer(text).text) for text in completion_texts(completions)
        ]
        return [
            None if reference is None else self._score(chem, answer, reference)
            for answer, reference in zip(answers, references, strict=True)
        ]

    def _score(self, chem: ModuleType, answer: Any, reference: Any) -> float:
        if answer is None:
            return 0.0
        canonical = [chem.MolToSmiles(molecule) for molecule in (answer, reference)]
        if canonical[0] == canonical[1]:
            return 1.0
        # Several molecules in one answer are several guesses.
        if self.floor == 1.0 or canonical[0].count(".") != canonical[1].count("."):
            return 0.0
        return 0.5 * max(0.0, (_tanimoto(answer, reference) - self.floor) / (1 - self.floor))


def smiles_similar(floor: float = 0.4) -> SmilesSimilar:
    """Reward function: 1.0 for the same molecule, up to 0.5 for a similar one.

    Similar is the Tanimoto similarity of Morgan fingerprints (radius 2, 2048 bits): 0.5 *
    (similarity - floor) / (1 - floor) above ``floor``, else 0, so that a common fragment earns
    nothing and a look-alike with the same fingerprint no more than half. An answer with another
    number of separate molecules than the reference earns 0.

    Everything else as in ``smiles_match``. Raises ValueError unless 0 <= floor < 1, and
    ImportError where RDKit is not installed.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor is {floor}; it must be at least 0 and below 1")
    _chem()
    return SmilesSimilar(float(floor))


def _chem() -> ModuleType:
    try:
        from rdkit import Chem  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "smiles_match and smiles_similar compare molecules with RDKit, which is not "
            f"installed ({error}); install it with 'pip install rdkit'"
        ) from error
    return Chem


def _bare(text: str) -> str:
    """``text`` without quotation marks, code and formula marks and the period of its sentence.

    They come in any order: "`CCO`." as well as "`CCO.`". One asterisk is an atom of SMILES, two
    in a row are bold type.
    """
    bare = _WRAPPING.sub("", text)
    # A triple bond inside of a LaTeX formula; no SMILES has a bond after a bond.
    return bare.replace("\\#", "#")


def _molecule(chem: ModuleType, text: str) -> Any:
    """The molecule of SMILES ``text``, or None if it is none or has no atoms."""
    # The length first: looking for what wraps a long run of blanks takes quadratic time.
    text = _bare(text) if len(text) <= MAX_CHARACTERS else ""
    # RDKit reads what follows white space as a name and would not mind it.
    if len(text.split()) != 1 or not text.isascii():
        return None
    from rdkit import rdBase  # pyright: ignore[reportMissingImports]

    with rdBase.BlockLogs():  # a line on standard error for each invalid answer
        molecule = chem.MolFromSmiles(text)
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def _tanimoto(answer: Any, reference: Any) -> float:
    from rdkit import DataStructs  # pyright: ignore[reportMissingImports]
    from rdkit.Chem import rdFingerprintGenerator  # pyright: ignore[reportMissingImports]

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    bits = [generator.GetFingerprint(molecule) for molecule in (answer, reference)]
    return float(DataStructs.TanimotoSimilarity(*bits))
