"""Words, numbers and codes that pictures print to be read."""

from __future__ import annotations

from foveal.tasks.dice import Dice

WORDS = (
    "anchor", "basket", "candle", "dragon", "engine", "forest", "garden", "hammer", "island",
    "jacket", "kettle", "ladder", "magnet", "needle", "orange", "pepper", "quartz", "rocket",
    "saddle", "tunnel", "umpire", "velvet", "walnut", "yellow", "zipper", "bridge", "castle",
    "desert", "falcon", "guitar", "helmet", "insect", "jungle", "kitten", "lemon", "marble",
    "nickel", "oyster", "parrot", "rabbit", "salmon", "temple", "violin", "window",
)  # fmt: skip
CODE_LETTERS = "ACEFHJKLMNPRTUVWXY"
"""No letter that looks like a digit, and no digit below that looks like a letter."""
CODE_DIGITS = "3479"
FORMS = ("word", "number", "code")


def printed_text(dice: Dice, form: str, length: int = 5) -> str:
    """A word in capitals, a number without leading zero, or a code such as ``K7-TR4``."""
    if form == "word":
        return dice.pick(WORDS).upper()
    if form == "number":
        return str(dice.between(10 ** (length - 1), 10**length - 1))
    signs = [dice.pick(CODE_LETTERS if dice.below(2) else CODE_DIGITS) for _ in range(length)]
    # A code is no number, whatever the dice say.
    signs[0] = dice.pick(CODE_LETTERS)
    return "".join([*signs[:2], "-", *signs[2:]])


def different_texts(dice: Dice, form: str, count: int, length: int = 5) -> list[str]:
    """``count`` texts of one form, all different; at most as many words as there are."""
    if form == "word":
        return [word.upper() for word in dice.sample(WORDS, count)]
    texts: list[str] = []
    while len(texts) < count:
        text = printed_text(dice, form, length)
        if text not in texts:
            texts.append(text)
    return texts


def misprint(dice: Dice, text: str) -> str:
    """``text`` with one of its signs, not the first, as another one of its sort."""
    places = [i for i, sign in enumerate(text) if i and sign != "-"]
    at = dice.pick(places)
    pool = "0123456789" if text.isdigit() else CODE_DIGITS if text[at].isdigit() else CODE_LETTERS
    return text[:at] + dice.pick([s for s in pool if s != text[at]]) + text[at + 1 :]
