"""Prompts are what the model's own processor makes of a row, split by picture, never cut."""

import pickle
from functools import cache

import pytest
import torch
from PIL import Image

from foveal.data import (
    PromptBuilder,
    PromptTooLong,
    describe_dropped,
    load_rows,
    normalise_row,
    survey,
)
from foveal.testing import tiny

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "gemma3")
PLACEHOLDER = {
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
    "gemma3": "<image_soft_token>",
}


@cache
def processor_of(family: str):
    return tiny(family)[1]


def token_id(family: str) -> int:
    return processor_of(family).tokenizer.convert_tokens_to_ids(PLACEHOLDER[family])


def builder_of(family: str, **options) -> PromptBuilder:
    return PromptBuilder(processor_of(family), image_token_id=token_id(family), **options)


def picture(width: int, height: int, shade: int = 0) -> Image.Image:
    made = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    made.paste((shade, shade, shade), (0, 0, width // 2, height // 2))
    return made


def row_of(*images: Image.Image, problem: str | None = None):
    markers = " and ".join(["<image>"] * len(images))
    asked = f"{markers} How many?" if problem is None else problem
    return normalise_row({"problem": asked, "images": list(images), "answer": "3"}, 0)


TWO_SIZES = (picture(60, 90), picture(140, 61, shade=200))
CASES = {
    "text only": (),
    "one picture": TWO_SIZES[:1],
    "two sizes": TWO_SIZES,
    "same twice": (TWO_SIZES[0], TWO_SIZES[0]),
    "shrunk and enlarged": (picture(900, 310), picture(28, 29)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_ids_and_pixels_are_those_of_the_processors_own_chat_call(family, case):
    row = row_of(*CASES[case])
    prompt = builder_of(family).build(row, 5)
    whole = processor_of(family).apply_chat_template(
        row.messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert prompt.ids == tuple(whole["input_ids"][0].tolist())
    assert prompt.index == 5
    assert len(prompt.images) == len(row.images)
    if row.images:
        join = torch.stack if family == "gemma3" else torch.cat
        assert torch.equal(join([i.pixel_values for i in prompt.images]), whole["pixel_values"])


@pytest.mark.parametrize("family", FAMILIES)
def test_each_picture_has_its_own_grid_pixels_and_token_count(family):
    prompt = builder_of(family).build(row_of(*TWO_SIZES), 0)
    runs = placeholder_runs(prompt.ids, token_id(family))
    assert [image.num_tokens for image in prompt.images] == runs
    for image in prompt.images:
        assert image.pixel_values.dtype == torch.float32
        if family == "gemma3":
            assert (image.grid_thw, tuple(image.pixel_values.shape)) == (None, (3, 56, 56))
        else:
            t, h, w = image.grid_thw
            assert image.pixel_values.shape[0] == t * h * w
            assert image.num_tokens == t * h * w // 4
    assert (prompt.images[0].grid_thw == prompt.images[1].grid_thw) == (family == "gemma3")


def placeholder_runs(ids: tuple[int, ...], token: int) -> list[int]:
    runs, length = [], 0
    for one in (*ids, -1):
        if one == token:
            length += 1
        elif length:
            runs.append(length)
            length = 0
    return runs


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_is_the_same_alone_and_beside_another(family):
    builder = builder_of(family)
    alone = builder.build(row_of(TWO_SIZES[1]), 0).images[0]
    beside = builder.build(row_of(*TWO_SIZES), 0).images
    assert torch.equal(alone.pixel_values, beside[1].pixel_values)
    assert alone.digest == beside[1].digest != beside[0].digest


@pytest.mark.parametrize("family", FAMILIES)
def test_digest_changes_with_one_pixel_and_only_then(family):
    builder = builder_of(family)
    changed = picture(56, 56)
    changed.putpixel((55, 55), (255, 0, 0))
    digests = [
        builder.build(row_of(one), 0).images[0].digest
        for one in (picture(56, 56), picture(56, 56), changed)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_digest_changes_with_the_grid_of_equal_pixels():
    # A white strip lying and standing: equal patches, and a different picture to the model.
    builder = builder_of("qwen2_5_vl")
    lying, standing = (
        builder.build(row_of(Image.new("RGB", size, "white")), 0).images[0]
        for size in ((112, 56), (56, 112))
    )
    assert torch.equal(lying.pixel_values, standing.pixel_values)
    assert lying.digest != standing.digest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_length_without_pixels_equals_the_built_length(family, case):
    builder = builder_of(family)
    row = row_of(*CASES[case])
    assert builder.length(row, 0) == len(builder.build(row, 0).ids)


def test_begin_of_sequence_of_the_template_is_not_doubled_by_the_tokenizer():
    from tokenizers.processors import TemplateProcessing

    processor = tiny("gemma3")[1]
    bos, number = processor.tokenizer.bos_token, processor.tokenizer.bos_token_id
    # What Gemma's published tokenizer does.
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, number)]
    )
    assert processor.tokenizer("a")["input_ids"][0] == number
    builder = PromptBuilder(processor, image_token_id=token_id("gemma3"))
    row = row_of(TWO_SIZES[0])
    assert builder.build(row, 0).ids.count(number) == 1
    assert builder.length(row, 0) == len(builder.build(row, 0).ids)


def test_columns_messages_and_system_prompt_are_carried_over():
    row = row_of(TWO_SIZES[0])
    prompt = builder_of("qwen3_vl", system_prompt="Think.").build(row, 0)
    assert prompt.columns is row.columns
    assert [message["role"] for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[1]["content"][0]["image"] is row.images[0]
    text = processor_of("qwen3_vl").tokenizer.decode(prompt.ids)
    assert text.startswith("<|im_start|>system\nThink.<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")


def test_chat_template_kwargs_reach_the_template():
    template = "{% for m in messages %}{{ m.role }}{% endfor %} {{ mood }}"
    options = {"chat_template": template, "mood": "brief"}
    prompt = builder_of("qwen3_vl", chat_template_kwargs=options).build(row_of(), 0)
    assert processor_of("qwen3_vl").tokenizer.decode(prompt.ids) == "user brief"


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholder_text_of_the_user_is_refused_and_not_counted_as_a_picture(family):
    row = row_of(TWO_SIZES[0], problem=f"<image> what is {PLACEHOLDER[family]}?")
    builder = builder_of(family)
    for use in (builder.build, builder.length):
        with pytest.raises(ValueError, match=r"^row 9: the user's text holds .*<image>") as caught:
            use(row, 9)
        assert PLACEHOLDER[family] in str(caught.value)


def test_token_that_opens_a_picture_is_refused_too():
    for family, token in (("gemma3", "<start_of_image>"), ("qwen3_vl", "<|vision_start|>")):
        with pytest.raises(ValueError, match="text holds"):
            builder_of(family).build(row_of(problem=f"{token} what?"), 0)


def test_placeholder_count_that_differs_gives_both_numbers():
    family = "qwen2_5_vl"
    wrong = PromptBuilder(processor_of(family), image_token_id=ord("H"))
    with pytest.raises(ValueError, match=r"row 3: the prompt has \d+ tokens .* need \d+\. Check"):
        wrong.build(row_of(TWO_SIZES[0]), 3)


def test_template_that_loses_a_picture_is_named():
    template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    builder = builder_of("qwen2_5_vl", chat_template_kwargs={"chat_template": template})
    with pytest.raises(ValueError, match=r"row 3: the prompt has 0 .* 1 picture"):
        builder.build(row_of(TWO_SIZES[0]), 3)


def test_what_the_processor_refuses_is_named_with_its_row():
    # Qwen's resizing gives up above an aspect ratio of 200.
    row = row_of(Image.new("RGB", (28 * 201, 28)))
    for use in (builder_of("qwen2_5_vl").build, builder_of("qwen2_5_vl").length):
        with pytest.raises(ValueError, match=r"row 8: the processor refused it \(.*200"):
            use(row, 8)


def test_pan_and_scan_is_refused_at_once():
    processor = tiny("gemma3")[1]
    processor.image_processor.do_pan_and_scan = True
    with pytest.raises(ValueError, match=r"do_pan_and_scan = False"):
        PromptBuilder(processor, image_token_id=token_id("gemma3"))


def test_too_long_prompt_is_an_error_with_both_lengths_and_never_cut():
    row = row_of(TWO_SIZES[0])
    exact = len(builder_of("qwen2_5_vl").build(row, 0).ids)
    assert len(builder_of("qwen2_5_vl", max_prompt_length=exact).build(row, 0).ids) == exact
    with pytest.raises(
        PromptTooLong, match=rf"row 6: .* {exact} tokens.* {exact - 1}\. Raise"
    ) as e:
        builder_of("qwen2_5_vl", max_prompt_length=exact - 1).build(row, 6)
    again = pickle.loads(pickle.dumps(e.value))
    assert (again.index, again.length, again.max_prompt_length) == (6, exact, exact - 1)


def source_of(*extra_words: int):
    image = picture(60, 60)
    return load_rows(
        [
            {"problem": "<image>" + "x" * words, "image": image, "answer": "3"}
            for words in extra_words
        ]
    )


def test_survey_drops_and_lists_what_is_too_long():
    source = source_of(1, 30, 2, 31)
    short = builder_of("qwen2_5_vl").length(source[0], 0)
    builder = builder_of("qwen2_5_vl", max_prompt_length=short + 1)
    assert survey(source, builder) == ([0, 2], [(1, short + 29), (3, short + 30)])
    assert survey(source, builder, limit=2) == ([0], [(1, short + 29)])
    for index in (0, 2):
        builder.build(source[index], index)


def test_survey_with_nothing_left_names_the_shortest():
    with pytest.raises(ValueError, match=r"all 2 prompts .*max_prompt_length=5; .* \d+ tokens"):
        survey(source_of(1, 2), builder_of("gemma3", max_prompt_length=5))


def test_survey_without_a_bound_reads_no_row():
    source = load_rows([{"problem": "<image>no picture"}] * 3)
    assert survey(source, builder_of("gemma3")) == ([0, 1, 2], [])
    assert survey(source, builder_of("gemma3"), limit=2) == ([0, 1], [])


def test_dropped_rows_are_put_into_one_line():
    assert describe_dropped([(4, 612), (9, 700)], 120, 512) == (
        "dropped 2 of 120 prompts longer than max_prompt_length=512: "
        "rows 4 (612 tokens), 9 (700 tokens)"
    )
    assert describe_dropped([], 120, 512) == "all 120 prompts fit max_prompt_length=512"
    many = describe_dropped([(i, 9) for i in range(12)], 120, 8)
    assert many.endswith("9 (9 tokens) and 2 more")


# -- the cache of processed pictures


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_from_the_cache_is_the_processors(family, case):
    row = row_of(*CASES[case])
    fresh = builder_of(family, picture_cache_bytes=0).build(row, 0)
    builder = builder_of(family)
    first, second = builder.build(row, 0), builder.build(row, 0)
    assert builder.pictures.hits == len(CASES[case])
    for built in (first, second):
        assert built.ids == fresh.ids
        assert [i.digest for i in built.images] == [i.digest for i in fresh.images]
    for image in builder.pictures._kept.values():
        pixels = image.pixel_values
        assert pixels.untyped_storage().nbytes() == pixels.nelement() * 4, "no hidden neighbours"


def test_the_cache_holds_no_more_than_its_bytes_and_lets_the_least_used_go():
    def of(shade):
        return row_of(picture(60, 90, shade))

    pixels = builder_of("qwen2_5_vl").build(of(0), 0).images[0].pixel_values
    size = pixels.nelement() * 4
    builder = builder_of("qwen2_5_vl", picture_cache_bytes=2 * size + 1)
    for shade in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which was used longer ago than 0
        builder.build(of(shade), 0)
        assert builder.pictures.bytes <= 2 * size
    assert (builder.pictures.hits, builder.pictures.misses) == (2, 4)
    small = builder_of("qwen2_5_vl", picture_cache_bytes=size - 1)
    small.build(of(0), 0)
    assert small.pictures.bytes == 0
    with pytest.raises(ValueError, match="0 keeps nothing"):
        builder_of("qwen2_5_vl", picture_cache_bytes=-1)


def test_other_settings_of_the_processor_are_other_pictures():
    processor = tiny("qwen2_5_vl")[1]
    builder = PromptBuilder(processor, image_token_id=token_id("qwen2_5_vl"))
    row = row_of(picture(200, 200))
    before = builder.build(row, 0)
    processor.image_processor.size = {"shortest_edge": 4 * 28**2, "longest_edge": 6 * 28**2}
    after = builder.build(row, 0)
    assert after.images[0].num_tokens < before.images[0].num_tokens
