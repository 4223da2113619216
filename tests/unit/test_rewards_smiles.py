"""Molecules by RDKit; skipped where it is not installed, but for the error that says so."""

import importlib.util
import pickle
import sys

import pytest

from foveal.rewards import resolve, smiles_match, smiles_similar

needs_rdkit = pytest.mark.skipif(
    importlib.util.find_spec("rdkit") is None, reason="rdkit is not installed"
)
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def score(reward, text, reference=ASPIRIN):
    (value,) = reward([text], answer=[reference])
    return value


def test_without_rdkit_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ImportError, match="install it with 'pip install rdkit'"):
        score(smiles_match, "C")
    with pytest.raises(ImportError, match="install it with 'pip install rdkit'"):
        resolve("smiles_similar()")


def test_a_floor_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"floor is 1.0"):
        smiles_similar(1.0)


@needs_rdkit
@pytest.mark.parametrize(
    "text",
    [
        ASPIRIN,
        "<answer>OC(=O)c1ccccc1OC(C)=O</answer>",
        "The answer is `O=C(C)Oc1ccccc1C(=O)O`.",
        "The answer is **O=C(C)Oc1ccccc1C(=O)O**.",
        "The answer is $O=C(C)Oc1ccccc1C(=O)O.$",
        '\\boxed{"CC(=O)Oc1ccccc1C(=O)O"}',
    ],
)
def test_the_ways_to_write_a_molecule(text):
    assert score(smiles_match, text) == 1.0
    assert score(smiles_similar(), text) == 1.0


@needs_rdkit
@pytest.mark.parametrize(
    "text",
    [
        "",
        "aspirin",
        "<answer></answer>",
        "C" * 2000,
        "C",
        "c1ccccc1",
        f"{ASPIRIN} or CCO",
        f"{ASPIRIN} aspirin",
        f"{ASPIRIN}>>{ASPIRIN}",
        f"{ASPIRIN}.{ASPIRIN}",
        f"{ASPIRIN}**x",
        f"<answer>{ASPIRIN}\ud800</answer>",
        ".",
        f"{ASPIRIN}.CCO.CCN",
        "CC(=O)Oc1ccccc1C(=O",
    ],
)
def test_fragments_lists_and_invalid_text_earn_nothing_and_print_nothing(text, capfd):
    assert score(smiles_match, text) == 0.0
    assert score(smiles_similar(), text) == 0.0
    assert capfd.readouterr().err == ""


@needs_rdkit
def test_atoms_and_bonds_that_look_like_markup_are_kept():
    assert score(smiles_match, "<answer>`*CCO`</answer>", "OCC*") == 1.0
    assert score(smiles_match, "`CCO`", "OCC*") == 0.0
    assert score(smiles_match, r"\boxed{CC\#N}", "N#CC") == 1.0
    assert score(smiles_match, r"<answer>F/C=C\F</answer>", "F/C=C/F") == 0.0


@needs_rdkit
def test_stereochemistry_counts_and_a_look_alike_earns_at_most_half():
    assert score(smiles_match, "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O") == 0.0
    assert score(smiles_similar(), "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O") == pytest.approx(0.5)
    longer = score(smiles_similar(), "OC(=O)c1ccccc1OC(=O)CC")  # by one carbon
    assert longer is not None and 0.0 < longer < 0.5
    assert score(smiles_match, "C", "not a molecule") is None
    assert pickle.loads(pickle.dumps(smiles_similar())) == smiles_similar()
