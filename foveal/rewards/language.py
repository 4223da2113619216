"""Which language a completion is written in, by script and by its commonest words.

Limits: a script is not a language, so Ukrainian passes for ``ru`` and Persian for ``ar``; Latin
languages other than the four below are none of them, but Dutch may pass for ``de`` and Portuguese
for ``es`` where they share words. For anything finer use a real language detector.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveal.rewards.extract import completion_texts

_STOP_WORDS = {
    "en": """the and of to in is that it for was on are as with be this at by from have not but
        which or an there we so if then has can what these two will its how each their""",
    "de": """der die das und ist nicht ein eine zu den mit sich auf für von dem des im es ich wir
        sind aber auch als an nach wie bei oder wenn so also dass hier gibt einen werden daher""",
    "fr": """le la les et est une des un du que dans il elle pour pas qui sur sont avec ce cette
        au aux par plus nous on mais ou donc il y en se de à car deux""",
    "es": """el la los las y es una un que en del por con no se para son al lo como más pero este
        esta hay su de entonces porque si o muy sus dos está""",
}
_STOP = {language: frozenset(text.split()) for language, text in _STOP_WORDS.items()}
_SCRIPTS = {
    "latin": r"A-Za-z\u00c0-\u024f",
    "han": r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "kana": r"\u3041-\u30ff",
    "hangul": r"\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e",
    "cyrillic": r"\u0400-\u052f",
    "arabic": r"\u0600-\u06ff\u0750-\u077f",
}
_LETTERS = {script: re.compile(f"[{letters}]") for script, letters in _SCRIPTS.items()}
_LETTER = re.compile(r"[^\W\d_]")
_LATIN_WORD = re.compile(rf"[{_SCRIPTS['latin']}]+")
_NOT_PROSE = re.compile(r"```.*?```|<[^<>\n]{1,40}>|\\[A-Za-z]+", re.DOTALL)
_MARKS = re.compile(r"[`<>\\]")
_SCRIPT_OF = {"zh": "han", "ja": "kana", "ko": "hangul", "ru": "cyrillic", "ar": "arabic"}
LANGUAGES = (*_STOP, *_SCRIPT_OF)
"""The languages that ``language_of`` knows, by their ISO 639-1 codes."""

_MIN_LETTERS, _MIN_WORDS = 6, 6
_MIN_SCRIPT, _MIN_KANA = 0.7, 0.1
_MIN_STOP, _MAX_STOP, _MIN_DISTINCT = 0.15, 0.75, 0.25


@dataclass(frozen=True)
class LanguageOf:
    """The reward function that ``language_of`` returns; a class so that it can be pickled."""

    language: str

    @property
    def __name__(self) -> str:
        """What the metrics call it."""
        return f"language_of_{self.language}"

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [float(detected(text) == self.language) for text in completion_texts(completions)]


def language_of(language: str) -> LanguageOf:
    """Reward function: 1.0 for a completion in ``language``, else 0.0.

    ``zh``, ``ja``, ``ko``, ``ru``, ``ar`` by their scripts: at least 70 % of the letters, and for
    ``ja`` a tenth of kana, which ``zh`` must not have. ``en``, ``de``, ``fr``, ``es`` by stop
    words: from 15 to 75 % of the words, more than of any other of the four. Tags, code and LaTeX
    commands do not count, unless more is said in them than outside, in another language: then it
    earns 0. A text of fewer than 6 letters or (Latin) 6 words cannot be told and
    earns 0, as does one that repeats few words; so leave it out for bare answers. See the top of
    the file for its limits. It reads no column.

    Raises ValueError for another language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language_of knows no {language!r}; known: {', '.join(LANGUAGES)}")
    return LanguageOf(language)


def detected(text: str) -> str | None:
    """The language of ``text`` out of ``LANGUAGES``, or None where it cannot be told."""
    prose = _NOT_PROSE.sub(" ", text)
    language = _detected(prose)
    # Thinking in another language does not become code by the fence around it; code and tags
    # that are in no language may be as long as they like.
    left_out = " ".join(_MARKS.sub(" ", hidden) for hidden in _NOT_PROSE.findall(text))
    if len(_LETTER.findall(left_out)) > len(_LETTER.findall(prose)):
        return language if _detected(left_out) in (language, None) else None
    return language


def _detected(text: str) -> str | None:
    total = len(_LETTER.findall(text))
    if total < _MIN_LETTERS:
        return None
    share = {script: len(letter.findall(text)) / total for script, letter in _LETTERS.items()}
    if share["han"] + share["kana"] >= _MIN_SCRIPT:
        return "ja" if share["kana"] >= _MIN_KANA else "zh"
    if share["latin"] >= _MIN_SCRIPT:
        return _by_stop_words([word.casefold() for word in _LATIN_WORD.findall(text)])
    return next((code for code, s in _SCRIPT_OF.items() if share[s] >= _MIN_SCRIPT), None)


def _by_stop_words(words: Sequence[str]) -> str | None:
    # Repeating "der die das" is no German: real prose has other words, and different ones.
    if len(words) < _MIN_WORDS or len(set(words)) < _MIN_DISTINCT * min(len(words), 40):
        return None
    count = Counter({code: sum(word in stop for word in words) for code, stop in _STOP.items()})
    (best, most), (_, second) = count.most_common(2)
    return best if most > second and _MIN_STOP <= most / len(words) <= _MAX_STOP else None
