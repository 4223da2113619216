"""Data: rows of any common format in, prompts out.

    from foveal.data import PromptBuilder, load_rows, survey

    source = load_rows("nlvr/train.parquet")         # or a folder, a hub id, a Dataset, a list
    source[0].messages                               # conversation with PIL pictures in it
    builder = PromptBuilder(processor, image_token_id=151655, max_prompt_length=1024)
    kept, dropped = survey(source, builder)          # too long is dropped and listed, never cut
    prompt = builder.build(source[kept[0]], kept[0]) # foveal.types.Prompt

Four steps, one file each, each usable alone:

    datasets    a name or an object -> ``RowSource``  (``files``: tables and folders on disk)
    columns     a row of EasyR1, verl, R1-V, TRL, LLaVA, ms-swift or OpenRLHF -> ``NormalRow``
                (``messages``: where the pictures go)
    images      PIL, path, URL, bytes, base64 -> an upright RGB picture
    prompts     ``NormalRow`` -> ``Prompt``, with the model's own processor
                (``lengths``: those that are too long; ``picture_cache``: pictures that come again;
                ``forms``: prompts as they are typed, for generation)

Training rows may also come from a stream, a task or a ``mixture`` of sources (``feeds``,
``streams``, ``mixtures``; ``difficulty`` measures what is drawn next).

``export`` writes rows in any of these formats; ``objects`` fills in ms-swift's boxes.
``identity`` says which rows are the same; ``coordinates`` what their boxes count in.
``targets`` says what a row wants to be written (supervised training), ``joined`` reads several
sources as one.

Everything wrong with a row is a ValueError or TypeError that names the row and the remedy.
"""

from foveal.data.columns import FORMATS, NormalRow, detect_format, normalise_row
from foveal.data.coordinates import (
    CoordinateSpace,
    clip_boxes,
    convert_boxes,
    convert_points,
    corners_of,
)
from foveal.data.datasets import RowSource, load_rows
from foveal.data.export import export_row, write_rows
from foveal.data.feeds import Feed, FeedSettings
from foveal.data.forms import PromptReader, list_prompts
from foveal.data.identity import question_key, row_key
from foveal.data.images import MIN_SIDE, PictureError, load_image, stored_picture
from foveal.data.joined import join_rows
from foveal.data.lengths import describe_dropped, survey
from foveal.data.mixtures import Mixture, TaskRows, mixture, open_feed, task_rows
from foveal.data.prompts import PromptBuilder, PromptTooLong
from foveal.data.targets import check_template, target_text, turn_end

__all__ = [
    "load_rows",
    "join_rows",
    "RowSource",
    "normalise_row",
    "detect_format",
    "NormalRow",
    "FORMATS",
    "load_image",
    "stored_picture",
    "PictureError",
    "MIN_SIDE",
    "row_key",
    "question_key",
    "PromptBuilder",
    "PromptTooLong",
    "survey",
    "describe_dropped",
    "PromptReader",
    "list_prompts",
    "mixture",
    "Mixture",
    "task_rows",
    "TaskRows",
    "open_feed",
    "Feed",
    "FeedSettings",
    "export_row",
    "write_rows",
    "CoordinateSpace",
    "convert_boxes",
    "convert_points",
    "clip_boxes",
    "corners_of",
    "target_text",
    "check_template",
    "turn_end",
]
