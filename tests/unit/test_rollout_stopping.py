"""Where completions end, and text that grows token by token: stop strings split over tokens, half
characters, special tokens in between."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from foveal.rollout import StopRule, TextStream
from foveal.testing.tokenizer import qwen_tokenizer
from foveal.types import SamplingParams

BYTES = qwen_tokenizer()
END = BYTES.eos_token_id
HIDDEN = BYTES.convert_tokens_to_ids("<|im_start|>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Whole words, and one token a byte for what it has no word for, as Gemma's has."""
    words = ["\u2581ab", "END", "c"]
    vocab = {word: i for i, word in enumerate([f"<0x{b:02X}>" for b in range(256)] + words)}
    backend = Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


PIECES = sentencepiece()


def ids(text: str) -> list[int]:
    return BYTES.encode(text, add_special_tokens=False)


def rule(*stop: str, tokenizer=BYTES, **settings) -> StopRule:
    return StopRule(tokenizer, {END}, SamplingParams(max_tokens=9, stop=stop, **settings))


def end_of(tokens: list[int], stops: StopRule) -> int | None:
    """How many tokens a completion has that is asked after each of them."""
    return next((i for i in range(1, len(tokens) + 1) if stops.ends(tokens[:i])), None)


# -- StopRule


def test_stop_tokens_end_and_ignore_eos_ends_only_at_those_of_the_request():
    assert rule().ends([1, END]) and not rule().ends([END, 1])
    assert rule(stop_token_ids=(7,)).ends([7])
    blind = rule(ignore_eos=True, stop_token_ids=(7,))
    assert blind.ends([7]) and not blind.ends([END])


@pytest.mark.parametrize("stop", ["b", "bcd", "\n\n", "😀", "é漢", "漢字😀 end"])
def test_a_completion_ends_at_the_token_that_completes_a_stop_string(stop):
    before, after = ids("a long beginning, é漢" * 2 if stop != "é漢" else "a"), ids("more" + stop)
    if stop == "b":
        before = ids("xyz" * 9)
    tokens = [*before, *ids(stop), *after]
    assert end_of(tokens, rule("never", stop)) == len(before) + len(ids(stop))


def test_special_tokens_inside_a_stop_string_do_not_hide_it():
    """They are not shown, and however many there are, the window must reach past them."""
    tokens = [*ids("xx an"), *[HIDDEN] * 50, *ids("d\u00e9"[:1]), *[HIDDEN] * 50, *ids("\u00e9")]
    assert end_of(tokens, rule("and\u00e9")) == len(tokens)


def test_half_a_character_is_no_stop_string():
    assert not rule("\ufffd").ends(ids("a😀")[:3])
    assert end_of(ids("a😀"), rule("\ufffd")) is None


def test_the_text_is_cut_before_the_first_stop_string_and_the_tokens_are_kept():
    tokens = ids("one;two.")
    assert rule(".", ";t").finish(tokens, True) == (tuple(tokens), "one", "stop")
    assert rule("!").finish(tokens, False) == (tuple(tokens), "one;two.", "length")
    assert rule().finish([*ids("x"), END], True) == ((*ids("x"), END), "x", "stop")
    cut = ids("x😀")[:-1]
    assert rule("!").finish(cut, False) == (tuple(cut), BYTES.decode(cut), "length")


def test_a_stop_string_of_words_and_bytes_is_found():
    token = PIECES.convert_tokens_to_ids
    tokens = [token("\u2581ab"), *"😀".encode(), token("END"), token("c")]
    assert PIECES.decode(tokens) == " ab😀ENDc"
    assert end_of(tokens, rule("ENDc", tokenizer=PIECES)) == len(tokens)
    assert end_of(tokens, rule("b😀E", tokenizer=PIECES)) == len(tokens) - 1
    assert end_of(tokens, rule(" ab", tokenizer=PIECES)) == 1


@pytest.mark.parametrize("longer", ["x" * n for n in range(1, 9)])
def test_a_window_that_begins_inside_a_character_does_not_hide_what_follows(longer):
    tokens = [*"漢漢漢漢😀é".encode()]
    assert end_of(tokens, rule("é", longer, tokenizer=PIECES)) == len(tokens)
    assert end_of(tokens, rule("漢😀é", longer, tokenizer=PIECES)) == len(tokens)


def test_a_token_with_the_end_of_a_character_and_the_begin_of_a_stop_string_counts():
    vocab = {"Ã": 0, "©a": 1, "b": 2}  # bytes C3, A9 61, 62 in the alphabet of byte-level BPE
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.decode([0, 1, 2]) == "éab"
    assert end_of([0, 1, 2], rule("ab", tokenizer=tokenizer)) == 3


# -- TextStream


def pieces_of(tokens: list[int], stop: tuple[str, ...] = (), tokenizer=BYTES) -> list[str]:
    stream = TextStream(tokenizer, stop)
    return [*(stream.push([token]) for token in tokens), stream.finish()]


def test_characters_come_whole_and_as_soon_as_they_are():
    pieces = pieces_of([*ids("aé😀"), HIDDEN, *ids("漢")])
    assert pieces == ["a", "", "é", "", "", "", "😀", "", "", "", "漢", ""]
    pieces = pieces_of([*"é".encode(), PIECES.convert_tokens_to_ids("c")], tokenizer=PIECES)
    assert pieces == ["", "", "éc", ""], "bytes of SentencePiece are settled by what follows"


def test_a_beginning_of_a_stop_string_is_held_back_until_it_is_none():
    assert pieces_of(ids("a<b</s"), stop=("</s>",)) == ["a", "", "<b", "", "", "", "</s"]
    assert pieces_of(ids("ab</s>c"), stop=("</s>",)) == ["a", "b", "", "", "", "", "", ""]


def random_text(draw: random.Random) -> str:
    return "".join(draw.choices("ab .\n é漢😀", k=draw.randrange(12)))


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "sentencepiece"])
def test_pieces_join_to_the_text_of_the_completion_whatever_comes(tokenizer):
    """Also for bytes that are no characters, several tokens at once, and cut ends."""
    draw = random.Random(0)
    cut = 0
    for _ in range(400):
        stop = tuple(filter(None, (random_text(draw)[:2] for _ in range(draw.randrange(4)))))
        tokens = []
        for _ in range(6):
            if tokenizer is BYTES:
                tokens += ids(random_text(draw))
            else:
                tokens += [*random_text(draw).encode(), draw.choice([256, 257, 258])]
            if draw.random() < 0.3:
                tokens.append(draw.randrange(256))
        tokens = tokens[: draw.randrange(1, len(tokens) + 2)]
        stops = rule(*stop, tokenizer=tokenizer)
        end = end_of(tokens, stops)
        _, text, _ = stops.finish(tokens[:end], end is not None)
        cut += end is not None
        stream, pieces, left = TextStream(tokenizer, stop), [], tokens[:end]
        while left:
            size = draw.randrange(1, 4)
            pieces.append(stream.push(left[:size]))
            left = left[size:]
        assert "".join([*pieces, stream.finish()]) == text
        assert end is None or not any(s in text for s in stop)
    assert 50 < cut < 390


@pytest.mark.parametrize("stop", [("END", ""), ("END", 3)])
def test_a_stop_string_that_is_none_is_named(stop):
    with pytest.raises(ValueError, match=rf"stop\[1\] is {stop[1]!r}; .* at least one character"):
        SamplingParams(max_tokens=4, stop=stop)
