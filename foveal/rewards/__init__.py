"""Rewards: functions that say how good each completion is.

A reward function has TRL's signature. It gets B rows at once, by name, and returns B values,
None for a row that it has nothing to say about::

    def mentions_colour(completions, colour, **columns):
        texts = [completion_text(completion) for completion in completions]
        return [float(c in text) for text, c in zip(texts, colour, strict=True)]

    GRPOTrainer(reward_funcs=[exact_answer, mentions_colour], ...)   # colour: a column of yours

``completions`` are strings or lists of messages, ``completion_ids`` their tokens, and every column
of the data set comes under its own name, repeated for each completion of its prompt. It may ask
for ``trainer_state``, ``log_extra(column, values)`` and ``log_metric(name, value)`` too, and it
may be ``async def``: async functions wait for their services at the same time.

The built-in functions read the reference from the column ``answer`` (or ``solution``) and the
completion's answer from ``<answer>..</answer>``, ``\\boxed{..}`` or "answer is ..", by the one rule
at the top of ``extract``. By name, as in a recipe or on a command line::

    reward_funcs: [exact_answer, "number_within(rel_tol=0.05)", "my_rewards.py:mentions_colour"]

=========================  ================================================================
exact_answer               the text, but for case, spacing and a trailing period
choice_letter              one letter of a multiple choice
number_answer              one number; ``number_within(rel_tol, abs_tol)`` for a tolerance
quantity_within(rel_tol)   a number with its unit, or with another unit of the same kind
math_answer                equal as mathematics (math-verify)
chart_relaxed(rel_tol)     numbers within 5 %, years and text exactly (ChartQA)
count_shaped(max_off)      a count; near ones earn a part
exact_set                  items in any order, all and no others
set_f1(max_extra)          items in any order, by F1; long lists earn nothing
text_edit(floor)           text read from a picture, by edit distance
smiles_match               a molecule, however it is written (needs rdkit)
smiles_similar(floor)      the same, and up to half for a similar molecule
json_fields(rel_tol)       a JSON object, field by field; extra fields cost
points_within(distance)    points in JSON, matched one to one; extra points cost
boxes_iou                  boxes in JSON, matched one to one; extra boxes cost
boxes_giou(floor)          the same by generalised IoU, in [floor, 1]
boxes_map(thresholds)      average precision of boxes, times a price on extra ones
think_answer_format        ``<think>..</think> <answer>..</answer>`` and nothing else
boxed_format               exactly one ``\\boxed{..}``, after the thinking
language_of("de")          prose in one of nine languages, by script and stop words
repetition_penalty_reward  0 down to -1 for n-grams said again: ``..reward(ngram=4)``
judge(base_url, model)     the score of a language model behind an OpenAI-compatible server
task_reward                each row by the reward of its own task (``foveal.tasks``)
soft_overlong(max, cache)  0, then linearly down to -1 near the token budget
=========================  ================================================================

Functions written for verl, EasyR1, VLM-R1 or ms-swift run unchanged through ``from_verl``,
``from_easyr1``, ``from_vlm_r1`` and ``from_ms_swift``; by name ``"from_verl('path/file.py:f')"``.

Each built-in one is written so that what a policy can do without looking at the picture (list all
the choices, cover the picture with boxes, repeat tags) earns nothing; the tests say what was
thought of.
"""

from foveal.rewards.adapt import from_easyr1, from_ms_swift, from_verl, from_vlm_r1
from foveal.rewards.answer import exact_answer
from foveal.rewards.boxes import boxes_iou
from foveal.rewards.boxes_more import boxes_giou, boxes_map
from foveal.rewards.call import RewardCaller, RewardError, RewardTable, weighted_sum
from foveal.rewards.chart import chart_relaxed
from foveal.rewards.choice import choice_letter
from foveal.rewards.count import count_shaped
from foveal.rewards.extract import completion_text, extract_answer
from foveal.rewards.format import boxed_format, think_answer_format
from foveal.rewards.json_fields import json_fields
from foveal.rewards.language import language_of
from foveal.rewards.length import soft_overlong
from foveal.rewards.maths import math_answer
from foveal.rewards.model_judge import judge
from foveal.rewards.number import number_answer, number_within
from foveal.rewards.points import points_within
from foveal.rewards.quantity import quantity_within
from foveal.rewards.registry import (
    BUILTIN_REWARDS,
    ELSEWHERE,
    REWARD_FACTORIES,
    RewardFunction,
    resolve,
    reward_names,
)
from foveal.rewards.repetition import repetition_penalty_reward
from foveal.rewards.sets import exact_set, set_f1
from foveal.rewards.smiles import smiles_match, smiles_similar
from foveal.rewards.text import text_edit

__all__ = [
    "exact_answer",
    "choice_letter",
    "number_answer",
    "number_within",
    "quantity_within",
    "math_answer",
    "chart_relaxed",
    "count_shaped",
    "exact_set",
    "set_f1",
    "text_edit",
    "smiles_match",
    "smiles_similar",
    "json_fields",
    "points_within",
    "boxes_iou",
    "boxes_giou",
    "boxes_map",
    "think_answer_format",
    "boxed_format",
    "language_of",
    "repetition_penalty_reward",
    "soft_overlong",
    "judge",
    "from_verl",
    "from_easyr1",
    "from_vlm_r1",
    "from_ms_swift",
    "completion_text",
    "extract_answer",
    "BUILTIN_REWARDS",
    "REWARD_FACTORIES",
    "ELSEWHERE",
    "reward_names",
    "RewardFunction",
    "resolve",
    "RewardCaller",
    "RewardError",
    "RewardTable",
    "weighted_sum",
]
