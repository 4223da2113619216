"""Repetition and language of prose; and what a lazy policy might try."""

import pickle

import pytest

from foveal.rewards import language_of, repetition_penalty_reward, resolve


def only(rewards):
    (reward,) = rewards
    assert type(reward) is float
    return reward


@pytest.mark.parametrize(
    ("text", "penalty"),
    [
        ("", 0.0),
        ("one", 0.0),
        ("a b c d", 0.0),
        ("a b a b", -1 / 3),  # ab, ba, ab
        ("A, b! a b", -1 / 3),
        ("<think>a b</think> a b", -2 / 5),  # think a, a b, b think, think a, a b
        ("a a a a a", -3 / 4),
        ("图图图图", -2 / 3),
        ("ha" * 100, -1 + 2 / 199),  # one long word
    ],
)
def test_repeated_bigrams_by_hand(text, penalty):
    assert only(repetition_penalty_reward(ngram=2)([text])) == pytest.approx(penalty)


def test_a_loop_costs_nearly_everything_and_never_more():
    loop = "let me look at the picture again. " * 200
    assert -2.0 <= only(repetition_penalty_reward(max_penalty=2.0)([loop])) < -1.98
    assert only(repetition_penalty_reward(3)(["the cat saw the dog and the bird"])) == 0.0


@pytest.mark.parametrize(
    "loop",
    ["Look at {}. ", "step{} again and again. ", "{}: no, wait, {}. ", "let me look\u200b {} "],
)
def test_a_counter_between_the_repeats_does_not_hide_them(loop):
    text = "".join(loop.replace("{}", str(n)) for n in range(100))
    assert only(repetition_penalty_reward(ngram=4)([text])) < -0.9


def test_numbers_of_a_calculation_are_no_repeats():
    assert only(repetition_penalty_reward(ngram=2)(["3 + 4 = 7, 7 + 12 = 19, 19 + 1 = 20"])) == 0.0


PROSE = {
    "en": "There are three dogs in the picture, and one of them is black, so the answer is three.",
    "de": "Auf dem Bild sind drei Hunde, und einer von ihnen ist schwarz, also ist es die Drei.",
    "fr": "Il y a trois chiens dans l'image, et un des chiens est noir, donc la réponse est trois.",
    "es": "En la imagen hay tres perros y uno de los perros es negro, entonces son tres en total.",
    "zh": "图片里有三只狗，其中一只是黑色的，所以答案是三。",
    "ja": "この写真には犬が三匹いて、そのうち一匹は黒いので、答えは三です。",
    "ko": "사진에는 개가 세 마리 있고 그중 한 마리는 검은색이므로 답은 셋입니다.",
    "ru": "На картинке три собаки, одна из них чёрная, поэтому ответ три.",
    "ar": "في الصورة ثلاثة كلاب وواحد منها أسود، لذلك الجواب هو ثلاثة.",
}


@pytest.mark.parametrize("language", PROSE)
def test_prose_is_of_its_own_language_only(language):
    text = f"<think>{PROSE[language]}</think> <answer>\\boxed{{3}}</answer>"
    passing = [code for code in PROSE if only(language_of(code)([text])) == 1.0]
    assert passing == [language]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "der die",
        "der die das und ist nicht ein eine",  # nothing but stop words
        "der Hund " * 30,
        "<der> <die> <das> <und> <ist> <nicht> <Hund> <Bild> <Katze>",
        PROSE["en"] + " der die das",
        PROSE["de"] + PROSE["ru"] + PROSE["zh"] * 3,
        "Hund Katze Bild Haus Baum Auto Himmel Wolke",
    ],
)
def test_stop_words_alone_and_mixtures_earn_nothing(text):
    assert only(language_of("de")([text])) == 0.0


@pytest.mark.parametrize("fence", ["```\n{}\n```", "```python\n{}\n```", "`{}` <{}>"])
def test_thinking_in_another_language_is_not_hidden_by_a_fence(fence):
    hidden = fence.replace("{}", PROSE["en"] * 2 if "```" in fence else PROSE["en"][:40])
    text = hidden * 8 + PROSE["de"]
    assert only(language_of("de")([text])) == 0.0
    assert only(language_of("de")([fence.replace("{}", PROSE["de"]) * 2 + PROSE["de"]])) == 1.0


def test_long_boxes_in_a_fence_do_not_make_prose_another_language():
    boxes = '[{"bbox_2d": [10, 10, 20, 20], "label": "dog"}, ' * 20
    assert only(language_of("de")([f"{PROSE['de']}\n```json\n{boxes}\n```"])) == 1.0


def test_a_few_foreign_names_do_not_change_the_language():
    assert only(language_of("zh")([PROSE["zh"] + " OpenCV"])) == 1.0
    assert only(language_of("de")([PROSE["de"] + " (The New York Times, Москва)"])) == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("language_of('tlh')", "knows no 'tlh'; known: en, de"),
        ("repetition_penalty_reward(ngram=0)", "ngram is 0"),
        ("repetition_penalty_reward(max_penalty=-1)", "max_penalty is -1; .*is its neg"),
    ],
)
def test_wrong_settings_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        resolve(text)


def test_functions_with_settings_are_named_and_can_be_pickled():
    for reward in (language_of("de"), repetition_penalty_reward()):
        assert pickle.loads(pickle.dumps(reward)) == reward
    assert resolve("language_of('de')").__name__ == "language_of_de"
    assert resolve("repetition_penalty_reward()").__name__ == "repetition_penalty_reward"
