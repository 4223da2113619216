"""A molecule as a picture, by RDKit's own drawer."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from foveal.tasks.canvas import INKS, PAPERS, with_noise
from foveal.tasks.dice import Dice

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = ((240, 280), (260, 320), (300, 360), (330, 400), (380, 440))
"""Least and most pixels of a side, by difficulty."""

SHORT = ("CO2H", "OMe", "NO2", "CF3", "CN", "OAc", "NHAc", "tBu", "iPr", "Et", "CO2Et", "SMe")
"""Abbreviations that are drawn, as RDKit calls them."""


def drawing(dice: Dice, molecule: Any, difficulty: int) -> Image:
    """RGB; turned, set and coloured at random. ``molecule`` is not changed."""
    from PIL import Image
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    width, height = (dice.between(*SIZES[difficulty - 1]) for _ in range(2))
    drawer = rdMolDraw2D.MolDraw2DCairo(width, height)
    shown = _labelled(dice, molecule, difficulty)
    rdDepictor.Compute2DCoords(shown)
    if difficulty >= 4 and dice.below(3) == 0:
        _shake(dice, shown)
    _dress(dice, drawer, difficulty)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, shown)
    drawer.FinishDrawing()
    with Image.open(BytesIO(drawer.GetDrawingText())) as opened:
        picture = opened.convert("RGB")
    grain = (0, 0, 3, 6, 10)[difficulty - 1]
    return with_noise(picture, dice, grain) if grain else picture


def _labelled(dice: Dice, molecule: Any, difficulty: int) -> Any:
    """A copy to draw: every carbon written out at first, groups abbreviated later."""
    from rdkit import Chem
    from rdkit.Chem import rdAbbreviations

    shown = Chem.Mol(molecule)
    if difficulty <= 2 and dice.below(3) < 2 - difficulty // 2:
        for atom in shown.GetAtoms():
            if atom.GetSymbol() == "C":
                count = atom.GetTotalNumHs()
                hydrogens = "" if not count else "H" if count == 1 else f"H<sub>{count}</sub>"
                atom.SetProp("atomLabel", f"C{hydrogens}")
    elif difficulty >= 3 and dice.below(3) == 0:
        plain = [a for a in rdAbbreviations.GetDefaultAbbreviations() if a.label in SHORT]
        shown = rdAbbreviations.CondenseMolAbbreviations(shown, plain, maxCoverage=0.6)
    return shown


def _shake(dice: Dice, molecule: Any) -> None:
    """Atoms off their places by less than a tenth of a bond, as drawn by hand.

    RDKit's own ``comicMode`` draws other lines every time.
    """
    places = molecule.GetConformer()
    for i in range(molecule.GetNumAtoms()):
        at = places.GetAtomPosition(i)
        at.x += dice.uniform(-0.13, 0.13)
        at.y += dice.uniform(-0.13, 0.13)
        places.SetAtomPosition(i, at)


def _dress(dice: Dice, drawer: Any, difficulty: int) -> None:
    options = drawer.drawOptions()
    paper, ink = dice.pick(PAPERS), dice.pick(INKS)
    options.setBackgroundColour(tuple(part / 255 for part in paper))
    options.rotate = dice.uniform(0, 360)
    options.padding = dice.uniform(0.04, 0.1)
    options.bondLineWidth = dice.uniform(1.0, 2.6)
    options.multipleBondOffset = dice.uniform(0.12, 0.2)
    options.minFontSize = (13, 12, 11, 10, 9)[difficulty - 1]
    options.maxFontSize = dice.between(14, 24)
    options.baseFontSize = dice.uniform(0.5, 0.75)
    options.explicitMethyl = dice.below(4) == 0
    look = dice.below(3)
    if look == 0:
        options.useBWAtomPalette()
    elif look == 1:
        options.setAtomPalette({-1: tuple(part / 255 for part in ink)})
