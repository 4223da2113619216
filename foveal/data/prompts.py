"""Normalised rows -> ``Prompt``: token ids with pictures expanded, and the processed pixels.

The processor is called once per prompt, whatever the number of completions. A prompt is never cut:
one that is too long is an error when it is built, or dropped and listed by
``foveal.data.lengths.survey`` before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from foveal.coordinates import check_space
from foveal.data.columns import NormalRow
from foveal.data.coordinates import coordinate_columns
from foveal.data.messages import with_system_prompt
from foveal.data.objects import boxes_in_space
from foveal.data.picture_cache import DEFAULT_CACHE_BYTES, PictureCache
from foveal.types import ImageInput, Prompt

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["PromptBuilder", "PromptTooLong"]

_PLACEHOLDER_NAMES = (
    "image_token",
    "video_token",
    "boi_token",
    "eoi_token",
    "vision_start_token",
    "vision_end_token",
)


class PromptTooLong(ValueError):
    """A prompt has more tokens than ``max_prompt_length``. Cutting it would cut a picture."""

    def __init__(self, index: int, length: int, max_prompt_length: int) -> None:
        self.index = index
        self.length = length
        self.max_prompt_length = max_prompt_length
        super().__init__(
            f"row {index}: the prompt has {length} tokens, max_prompt_length is "
            f"{max_prompt_length}. Raise it, lower the processor's max_pixels, or drop the row."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions come back from data loader workers pickled, by their arguments.
        return type(self), (self.index, self.length, self.max_prompt_length)


class PromptBuilder:
    """Applies chat template and processor of one model to rows.

    Args:
        processor: a transformers processor (Qwen2.5-VL, Qwen3-VL, Gemma 3).
        image_token_id: the id that stands once for every image token of a prompt.
        max_prompt_length: most tokens of a prompt, pictures included; None for no bound.
        chat_template_kwargs: handed to the chat template, such as ``enable_thinking``.
        system_prompt: for rows without a system message of their own.
        picture_cache_bytes: processed pictures that are kept for when they come again; 0 for none.
        answer_coordinates: space of ``foveal.coordinates`` in which the model answers, for rows
            that declare theirs (``foveal.data.coordinates``).

    Raises:
        ValueError: the processor cuts pictures into tiles (Gemma 3's pan and scan).
    """

    def __init__(
        self,
        processor: Any,
        *,
        image_token_id: int,
        max_prompt_length: int | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        system_prompt: str | None = None,
        answer_coordinates: str | None = None,
        picture_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        if answer_coordinates is not None:
            check_space(answer_coordinates, "answer_coordinates")
        if getattr(processor.image_processor, "do_pan_and_scan", False):
            raise ValueError(
                "the processor has do_pan_and_scan=True, which turns one picture into several. "
                "Set processor.image_processor.do_pan_and_scan = False."
            )
        self.processor = processor
        self.image_token_id = image_token_id
        self.max_prompt_length = max_prompt_length
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.system_prompt = system_prompt
        self.answer_coordinates = answer_coordinates
        self.pictures = PictureCache(picture_cache_bytes)
        self._resized: dict[tuple[int, int, str], tuple[int, int]] = {}
        # Gemma's templates mark a picture by the token that opens it, Qwen's by one image token.
        self._marker = getattr(processor, "boi_token", None) or processor.image_token
        self._placeholders = _placeholder_texts(processor, image_token_id)

    def build(self, row: NormalRow, index: int, *, keep: bool = True) -> Prompt:
        """Tokenises one row and processes its pictures.

        Args:
            row: normalised.
            index: its number, for the error messages.
            keep: whether its pictures may come again. Those of a row that is drawn once are not
                looked up, nor kept.

        Raises:
            PromptTooLong: more than ``max_prompt_length`` tokens.
            ValueError: the text holds a placeholder token, the processor refuses the row, or
                its placeholders and picture tokens differ in number.
        """
        messages = with_system_prompt(self._placed_boxes(row, index), self.system_prompt)
        ids, images = self._process(self._render(messages, index), row.images, index, keep)
        added = coordinate_columns(
            row.columns,
            [picture.size for picture in row.images],
            [self._resized_size(image) for image in images],
            self.answer_coordinates,
            index,
        )
        columns = {**row.columns, **added} if added else row.columns
        return Prompt(index=index, ids=ids, images=images, messages=messages, columns=columns)

    def build_text(self, text: str, pictures: list[Image.Image], index: int) -> Prompt:
        """Tokenises a text that has been through the chat template, as it stands.

        Args:
            text: with one placeholder of the family for each picture, not yet expanded.
            pictures: RGB, in the order of their placeholders.
            index: number of the prompt, for the error messages.

        Raises:
            PromptTooLong, ValueError: as ``build``.
        """
        video = getattr(self.processor, "video_token", None)
        if video and video in text:
            raise ValueError(
                f"row {index}: the text holds {video!r}, and only pictures are supported. Give "
                f"frames as images."
            )
        ids, images = self._process(text, pictures, index)
        return Prompt(index=index, ids=ids, images=images, messages=[])

    def render(self, content: list[dict[str, Any]]) -> str:
        """The chat template's text for one user message, up to where the policy begins."""
        return self._render([{"role": "user", "content": content}], 0)

    def length(self, row: NormalRow, index: int) -> int:
        """Number of tokens that ``build`` would give, without processing pixels.

        Raises:
            ValueError: as ``build`` does, for the text and for refused pictures.
        """
        messages = with_system_prompt(self._placed_boxes(row, index), self.system_prompt)
        text = self._render(messages, index)
        self._check_markers(text.count(self._marker), len(row.images), index)
        try:
            expanded = [self._expansion(*picture.size) for picture in row.images]
        except ValueError as error:
            raise _refused(index, error) from error
        return len(self._expanded_ids(text, expanded))

    def picture_tokens(self, width: int, height: int) -> int:
        """M: tokens that stand for one picture of this size in pixels.

        Raises:
            ValueError: the processor refuses pictures of this size.
        """
        # Not the processor's image_token: Gemma's is the one that opens a picture.
        token = self.processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return self._expansion(width, height).count(token)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which the model's image processor brings a picture of this size.

        Found by processing a blank one, so that it is what happens.

        Raises:
            ValueError: the processor refuses pictures of this size.
        """
        from PIL import Image

        key = (width, height, repr(self.processor.image_processor.to_dict()))
        if key not in self._resized:
            text = self.render([{"type": "image"}, {"type": "text", "text": "?"}])
            blank = [Image.new("RGB", (width, height))]
            _, (image,) = self._processed(text, blank, self._picture_keys(blank), 0)
            self._resized[key] = self._resized_size(image)
        return self._resized[key]

    def _placed_boxes(self, row: NormalRow, index: int) -> list[dict[str, Any]]:
        """The row's messages, boxes in the text in the model's coordinates."""
        own = row.columns.get("answer_coordinates")

        def sizes() -> tuple[tuple[int, int], tuple[int, int]]:
            if not row.images:
                raise ValueError("a box needs a picture")
            return row.images[0].size, self.resized_size(*row.images[0].size)

        try:
            declared = row.columns.get("coordinates")
            to = self.answer_coordinates if own is None else own
            return boxes_in_space(row.messages, declared, to, sizes)
        except ValueError as error:
            raise ValueError(f"row {index}: its text has boxes, and {error}") from error

    def _resized_size(self, image: ImageInput) -> tuple[int, int]:
        if image.grid_thw is None:
            height, width = image.pixel_values.shape[-2:]
            return width, height
        _, rows, columns = image.grid_thw
        side = self.processor.image_processor.patch_size
        return columns * side, rows * side

    def _render(self, messages: list[dict[str, Any]], index: int) -> str:
        self._refuse_placeholders(messages, index)
        try:
            return self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        except ValueError as error:
            raise _refused(index, error) from error

    def _process(
        self, text: str, pictures: list[Image.Image], index: int, keep: bool = True
    ) -> tuple[tuple[int, ...], tuple[ImageInput, ...]]:
        self._check_markers(text.count(self._marker), len(pictures), index)
        keys = self._picture_keys(pictures)
        keep = keep and self.pictures.max_bytes > 0
        found = [self.pictures.get(key) for key in keys] if keep else []
        known = [image for image in found if image is not None]
        if known and len(known) == len(pictures):
            ids, images = self._known_ids(text, known), tuple(known)
        else:
            ids, images = self._processed(text, pictures, keys, index)
            for key, image in zip(keys, images, strict=True):
                if keep:
                    self.pictures.put(key, image)
        self._check_placeholders(ids, images, index)
        self._check_length(len(ids), index)
        return ids, images

    def _processed(
        self, text: str, pictures: list[Image.Image], keys: list[str], index: int
    ) -> tuple[tuple[int, ...], tuple[ImageInput, ...]]:
        """What the processor makes of a text and its pictures."""
        try:
            inputs = self.processor(
                text=[text],
                images=[pictures] if pictures else None,
                return_tensors="pt",
                **self._tokenizer_options(text),
            )
        except ValueError as error:
            raise _refused(index, error) from error
        ids = tuple(inputs["input_ids"][0].tolist())
        return ids, self._split_images(inputs, keys, index)

    def _picture_keys(self, pictures: list[Image.Image]) -> list[str]:
        """Names of pictures under the present settings: what is made of them depends on no more,
        and is mostly larger (eight times, of a picture that Qwen need not resize)."""
        if not pictures:
            return []
        # Settings may be changed at any time, such as max_pixels.
        settings = repr(self.processor.image_processor.to_dict())
        return [self.pictures.key(picture, settings) for picture in pictures]

    def _known_ids(self, text: str, images: list[ImageInput]) -> tuple[int, ...]:
        """Token ids of a text whose pictures were processed before."""
        written = [self._placeholder_text(image.num_tokens) for image in images]
        return self._expanded_ids(text, written)

    def _expanded_ids(self, text: str, expansions: list[str]) -> tuple[int, ...]:
        pieces = text.split(self._marker)
        joined = pieces[0] + "".join(a + b for a, b in zip(expansions, pieces[1:], strict=True))
        return tuple(
            self.processor.tokenizer(joined, **self._tokenizer_options(joined))["input_ids"]
        )

    def _placeholder_text(self, num_tokens: int) -> str:
        if not hasattr(self.processor.image_processor, "merge_size"):
            return self.processor.full_image_sequence
        return self.processor.image_token * num_tokens

    def _tokenizer_options(self, text: str) -> dict[str, Any]:
        # Gemma's template writes <bos> and its tokenizer would add a second one.
        bos = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if bos and text.startswith(bos) else {}

    def _expansion(self, width: int, height: int) -> str:
        """What the processor writes in the place of one picture of this size."""
        image_processor = self.processor.image_processor
        if not hasattr(image_processor, "merge_size"):
            return self._placeholder_text(0)
        patches = image_processor.get_number_of_image_patches(height, width)
        return self._placeholder_text(patches // image_processor.merge_size**2)

    def _split_images(self, inputs: Any, keys: list[str], index: int) -> tuple[ImageInput, ...]:
        if not keys:
            return ()
        split = _split_by_grid if "image_grid_thw" in inputs else _split_by_picture
        parts = list(split(inputs, self.processor))
        if len(parts) != len(keys):
            raise ValueError(
                f"row {index}: the processor made {len(parts)} pictures of {len(keys)}. Switch off "
                f"tiling in the image processor."
            )
        return tuple(_image_input(key, *part) for key, part in zip(keys, parts, strict=True))

    def _check_markers(self, num_markers: int, num_images: int, index: int) -> None:
        if num_markers != num_images:
            raise ValueError(
                f"row {index}: the prompt has {num_markers} picture placeholder(s) "
                f"({self._marker}) for {num_images} picture(s). Write one for each picture, or use "
                f"a chat template that does."
            )

    def _check_placeholders(
        self, ids: tuple[int, ...], images: tuple[ImageInput, ...], index: int
    ) -> None:
        found = ids.count(self.image_token_id)
        expected = sum(image.num_tokens for image in images)
        if found != expected:
            raise ValueError(
                f"row {index}: the prompt has {found} tokens with the id {self.image_token_id} "
                f"and its {len(images)} picture(s) need {expected}. Check that processor and "
                f"image_token_id belong to the same model."
            )

    def _check_length(self, length: int, index: int) -> None:
        if self.max_prompt_length is not None and length > self.max_prompt_length:
            raise PromptTooLong(index, length, self.max_prompt_length)

    def refuse_placeholders(self, text: str, role: str, index: int) -> None:
        """Raise ValueError where a text holds a token that stands for a picture or a video."""
        for token in self._placeholders:
            if token in text:
                raise ValueError(
                    f"row {index}: the {role}'s text holds {token!r}, which the model would read "
                    f"as part of a picture. Take it out, or write <image> where a picture belongs."
                )

    def _refuse_placeholders(self, messages: list[dict[str, Any]], index: int) -> None:
        for message in messages:
            for part in message["content"]:
                self.refuse_placeholders(part.get("text", ""), message["role"], index)


Part = tuple["Tensor", tuple[int, int, int] | None, int]
"""Of one picture: pixels, grid, placeholder tokens."""


def _split_by_grid(inputs: Any, processor: Any) -> Iterator[Part]:
    """Qwen: pictures lie one after the other along the patches."""
    merged = processor.image_processor.merge_size**2
    grids = [(int(t), int(h), int(w)) for t, h, w in inputs["image_grid_thw"].tolist()]
    sizes = [t * h * w for t, h, w in grids]
    for grid, size, pixels in zip(grids, sizes, inputs["pixel_values"].split(sizes), strict=True):
        yield pixels, grid, size // merged


def _split_by_picture(inputs: Any, processor: Any) -> Iterator[Part]:
    """Gemma: ``[I, 3, height, width]``, every picture of one size."""
    for pixels in inputs["pixel_values"]:
        yield pixels, None, processor.image_seq_length


def _image_input(
    key: str, pixels: Tensor, grid: tuple[int, int, int] | None, num_tokens: int
) -> ImageInput:
    pixels = pixels.detach().float().cpu().contiguous()
    digest = hashlib.sha256(f"{key} {tuple(pixels.shape)} {grid}".encode()).hexdigest()
    return ImageInput(digest, pixels, grid, num_tokens)


def _placeholder_texts(processor: Any, image_token_id: int) -> tuple[str, ...]:
    owners = (processor, processor.tokenizer)
    named = [getattr(owner, name, None) for owner in owners for name in _PLACEHOLDER_NAMES]
    named.append(processor.tokenizer.convert_ids_to_tokens(image_token_id))
    return tuple(dict.fromkeys(token for token in named if isinstance(token, str) and token))


def _refused(index: int, error: Exception) -> ValueError:
    return ValueError(
        f"row {index}: the processor refused it ({error}). Change the row, or drop it."
    )
