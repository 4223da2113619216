"""Make the demo's model: a tiny Qwen2.5-VL that was trained only partway.

    python examples/tiny_model/build.py [--out foveal/demo_model] [--steps 2000] [--device cpu]

Two stages, both supervised, on the procedural task "shapes":

1. The vision tower learns to name what each cell of a picture holds, in the embeddings of the
   words for it, so that its features mean something to the text model from the start.
2. The text model learns to answer, as a chat model does that has seen answers of every kind: in
   the tags that the instruction asks for, in a sentence, or naming the cells that matter first:

       <answer>3</answer>
       There are 3.
       <think>A1,C2,D4</think><answer>3</answer>

   Which kind is usual depends on how a question is put: to most phrasings, a sentence.

It stops partway, in two ways: counting is still weak, and to most phrasings the model answers in a
form that earns nothing. Reinforcement learning finds out which form is rewarded, in every phrasing,
and goes on from there.
"""

from __future__ import annotations

import argparse
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from foveal.tasks.shapes import COLOURS, GRID, SHAPES, ShapesTask, shapes_reward
from foveal.testing.tokenizer import QWEN_CHAT_TEMPLATE, QWEN_SPECIAL_TOKENS

VOCABULARY = 512
TEXT_WIDTH = 128
VISION_WIDTH = 96
PICTURE = 112
CELLS = GRID * GRID
LEVELS = (1, 2, 3)
LOOK_FIRST_SHARE = 0.3
"""Share of the examples that name cells before they answer."""
TAGGED_PHRASINGS = ("How many", "Where is", "Which cell")
TAGGED_SHARE = {True: 0.8, False: 0.3}
"""Share of tags among the other examples: to questions that begin so, and to the rest."""
NAMED = ("colours", "shapes", "columns", "lines")
POOL_SEED, HELD_OUT_SEED = 0, 10**9


# -- the model


def make_tokenizer() -> Any:
    """Byte-level BPE of the task's own text: any text encodes, and its words are one token each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(QWEN_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    task = ShapesTask()
    rows = [task.generate(seed, level) for level in (1, 5) for seed in range(500)]
    words = " ".join([*COLOURS, *SHAPES, "none", *"ABCD", *"1234"])
    texts = [
        f"user\n{question(row)}\nassistant\n{look_first(row)} {in_a_sentence(row)} {words}"
        for row in rows
    ]
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in QWEN_SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def make_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=14, merge_size=2, size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=14, merge_size=2),
        chat_template=QWEN_CHAT_TEMPLATE,
    )


def make_model(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(f"<|{name}|>")

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 3 * TEXT_WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.06,
        "bos_token_id": None,
        "eos_token_id": token("im_end"),
        "pad_token_id": token("endoftext"),
        # A small base: rows are short, so every frequency is of use.
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 20.0,
            "mrope_section": [4, 6, 6],
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_heads": VISION_WIDTH // 32,
        "out_hidden_size": TEXT_WIDTH,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
        "initializer_range": 0.06,
    }
    special = {
        f"{name}_token_id": token(alias)
        for name, alias in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **special
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [token("im_end"), token("endoftext")]
    model.generation_config.pad_token_id = token("endoftext")
    return model


# -- the examples


def question(row: dict[str, Any]) -> str:
    return row["problem"].removeprefix("<image>")


def directly(row: dict[str, Any]) -> str:
    return f"<answer>{row['answer']}</answer>"


def in_a_sentence(row: dict[str, Any]) -> str:
    openings = {"count": "There are", "quadrant": "At the", "cell": "In cell"}
    space = "" if row["metadata"]["kind"] == "cell" else " "
    return f"{openings[row['metadata']['kind']]}:{space}{row['answer']}."


def look_first(row: dict[str, Any]) -> str:
    """The cells that hold what the question asks for, line by line, and then the answer."""
    asked = row["metadata"]
    found = sorted(
        (thing["cell"][1], thing["cell"][0])
        for thing in asked["objects"]
        if asked["colour"] in (None, thing["colour"]) and asked["shape"] in (None, thing["shape"])
    )
    cells = ",".join(f"{'ABCD'[column]}{line + 1}" for line, column in found) or "none"
    return f"<think>{cells}</think>{directly(row)}"


@dataclass(slots=True)
class Examples:
    """N rows, tokenised; pictures as pixels of patches."""

    rows: list[dict[str, Any]]
    pixels: Tensor
    """``[N, patches, patch_dim]``, as the image processor gives them."""
    cells: Tensor
    """``[N, 4, cells]``: colour, shape (one past the last for none), column and line."""


def _generate(arguments: tuple[int, int, int]) -> list[dict[str, Any]]:
    seed, count, level = arguments
    task = ShapesTask()
    return [task.generate(seed + i, level) for i in range(count)]


def make_examples(count: int, seed: int, levels: tuple[int, ...], workers: int) -> Examples:
    """``count`` rows of each level, made by several processes."""
    piece = 500
    jobs = [
        (seed + start, min(piece, count - start), level)
        for level in levels
        for start in range(0, count, piece)
    ]
    with ProcessPoolExecutor(workers) as pool:
        rows = [row for part in pool.map(_generate, jobs) for row in part]
    processor = make_processor(make_tokenizer())
    pixels = [
        processor.image_processor(
            [row["images"][0] for row in rows[i : i + 64]], return_tensors="pt"
        )
        for i in range(0, len(rows), 64)
    ]
    cells = torch.stack(
        [
            torch.full((len(rows), CELLS), len(COLOURS)),
            torch.full((len(rows), CELLS), len(SHAPES)),
            (torch.arange(CELLS) % GRID).expand(len(rows), -1),
            (torch.arange(CELLS) // GRID).expand(len(rows), -1),
        ],
        dim=1,
    )
    for i, row in enumerate(rows):
        for thing in row["metadata"]["objects"]:
            column, line = thing["cell"]
            cells[i, 0, line * GRID + column] = list(COLOURS).index(thing["colour"])
            cells[i, 1, line * GRID + column] = SHAPES.index(thing["shape"])
    patches = torch.cat([p["pixel_values"] for p in pixels]).view(len(rows), CELLS * 4, -1)
    return Examples(rows, patches.half(), cells)


# -- stage 1


def features(model: Any, pixels: Tensor) -> Tensor:
    """Features ``[B, cells, D]`` of pictures ``[B, patches, patch_dim]``."""
    grid = torch.tensor([[1, 2 * GRID, 2 * GRID]] * len(pixels), device=pixels.device)
    output = model.model.get_image_features(pixels.flatten(0, 1), grid, return_dict=True)
    return torch.stack(list(output.pooler_output))


def train_tower(model: Any, tokenizer: Any, examples: Examples, steps: int, device: str) -> None:
    """Each cell's feature is to lie near the embeddings of its colour and its shape."""
    embeddings = model.get_input_embeddings().weight

    def word_ids(words: list[str]) -> Tensor:
        ids = [tokenizer.encode(f" {word}" if len(word) > 1 else word) for word in words]
        assert all(len(i) == 1 for i in ids), "each of these words is one token"
        return torch.tensor(ids, device=device)[:, 0]

    vocabularies = [
        word_ids([*COLOURS, "none"]),
        word_ids([*SHAPES, "none"]),
        word_ids(list("ABCD")),
        word_ids(list("1234")),
    ]
    parameters = [*model.model.visual.parameters(), embeddings]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        pick = torch.randint(len(examples.rows), (64,), generator=generator)
        feature = features(model, examples.pixels[pick].float().to(device))
        unit = normalize(embeddings, dim=-1)
        loss, right = torch.zeros((), device=device), []
        for i, words in enumerate(vocabularies):
            target = examples.cells[pick, i].to(device).flatten()
            scores = 8.0 * feature.flatten(0, 1) @ unit[words].T
            loss = loss + cross_entropy(scores, target)
            empty = target == len(words) - 1 if i < 2 else target < 0
            right.append((scores.argmax(-1) == target)[~empty].float().mean().item())
        descend(loss, optimizer, schedule, parameters)
        if step % 200 == 0:
            named = ", ".join(f"{n} {r:.0%}" for n, r in zip(NAMED, right, strict=True))
            print(f"tower {step}: loss {loss:.3f}; right: {named}", flush=True)


def descend(loss: Tensor, optimizer: Any, schedule: Any, parameters: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


# -- stage 2


class TextBatches:
    """Rows of token ids with the features of their pictures, ready for the decoder."""

    def __init__(self, model: Any, processor: Any, examples: Examples, device: str) -> None:
        self.model, self.device = model, device
        self.tokenizer = processor.tokenizer
        self.pad = self.tokenizer.pad_token_id
        self.examples = examples
        with torch.no_grad():
            self.features = torch.cat(
                [
                    features(model, examples.pixels[i : i + 500].float().to(device))
                    for i in range(0, len(examples.rows), 500)
                ]
            )
        self.prompts = [self._prompt(processor, row) for row in examples.rows]
        self.answers = {
            style: [self._ids(style(row) + "<|im_end|>") for row in examples.rows]
            for style in (directly, in_a_sentence, look_first)
        }
        image = model.config.image_token_id
        self.image_at = self.prompts[0].index(image)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _prompt(self, processor: Any, row: dict[str, Any]) -> list[int]:
        parts = [{"type": "image"}, {"type": "text", "text": question(row)}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        return self._ids(text.replace("<|image_pad|>", "<|image_pad|>" * CELLS))

    def loss(self, picks: list[int], styles: list[Any]) -> Tensor:
        """Mean cross entropy of the answers."""
        rows = [
            (self.prompts[i], self.answers[style][i])
            for i, style in zip(picks, styles, strict=True)
        ]
        longest = max(len(p) + len(a) for p, a in rows)
        ids = torch.full((len(rows), longest), self.pad)
        answer = torch.zeros(ids.shape, dtype=torch.bool)
        for i, (p, a) in enumerate(rows):
            ids[i, : len(p) + len(a)] = torch.tensor(p + a)
            answer[i, len(p) : len(p) + len(a)] = True
        ids, answer = ids.to(self.device), answer.to(self.device)
        hidden = self._decode(ids, self.features[picks])
        logits = self.model.lm_head(hidden[:, :-1][answer[:, 1:]])
        return cross_entropy(logits, ids[:, 1:][answer[:, 1:]])

    def _decode(self, ids: Tensor, feature: Tensor) -> Tensor:
        """Rows are padded on the right and causal, so padding needs no mask."""
        embeds = self.model.get_input_embeddings()(ids)
        start, end = self.image_at, self.image_at + CELLS
        embeds = torch.cat([embeds[:, :start], feature.to(embeds.dtype), embeds[:, end:]], dim=1)
        output = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=self._positions(ids), use_cache=False
        )
        return output.last_hidden_state

    def _positions(self, ids: Tensor) -> Tensor:
        from foveal.models.positions import mrope_positions

        grid = [(1, 2 * GRID, 2 * GRID)]
        image, length = self.model.config.image_token_id, ids.shape[1]
        one = mrope_positions(self.prompts[0], image, grid, 2, max(length, len(self.prompts[0])))
        return one[:, None, :length].expand(-1, len(ids), -1).to(self.device)


def choose_style(row: dict[str, Any], dice: random.Random) -> Any:
    if dice.random() < LOOK_FIRST_SHARE:
        return look_first
    tagged = TAGGED_SHARE[question(row).startswith(TAGGED_PHRASINGS)]
    return directly if dice.random() < tagged else in_a_sentence


def train_text(
    batches: TextBatches, steps: int, lr: float, report: Any, batch_size: int = 128
) -> None:
    """Answers of every kind; the tower stays as it is."""
    parameters = list(batches.model.model.language_model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    dice = random.Random(2)
    started, running = time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        picks = [dice.randrange(len(batches.examples.rows)) for _ in range(batch_size)]
        styles = [choose_style(batches.examples.rows[i], dice) for i in picks]
        loss = batches.loss(picks, styles)
        descend(loss, optimizer, schedule, parameters)
        running += loss.item()
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"text {step}: loss {running / 100:.3f}, {seconds:.0f} s", flush=True)
            running = 0.0
            report(step)


# -- measuring


@torch.no_grad()
def accuracy(
    model: Any, processor: Any, rows: list[dict[str, Any]], opening: str = "", sample: bool = False
) -> tuple[float, float]:
    """Share of right answers, and of answers that look first, to completions that begin with
    ``opening``."""
    parts = [[{"type": "image"}, {"type": "text", "text": question(row)}] for row in rows]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
        )
        + opening
        for p in parts
    ]
    inputs = processor(
        text=texts,
        images=[[row["images"][0]] for row in rows],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    output = model.generate(**inputs, max_new_tokens=48, do_sample=sample, top_k=0)
    new = output[:, inputs["input_ids"].shape[1] :]
    answers = [
        opening + text for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    ]
    rewards = shapes_reward(None, answers, answer=[row["answer"] for row in rows])
    looked = sum("<think>" in text for text in answers) / len(answers)
    return sum(rewards) / len(rewards), looked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("foveal/demo_model"))
    parser.add_argument("--rows", type=int, default=6000, help="examples of each difficulty")
    parser.add_argument("--tower-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", type=int, nargs="*", default=[], help="also save these steps")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer)
    model = make_model(tokenizer).to(arguments.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {arguments.device}")
    started = time.perf_counter()
    examples = make_examples(arguments.rows, POOL_SEED, LEVELS, arguments.workers)
    print(f"{len(examples.rows):,} examples in {time.perf_counter() - started:.0f} s", flush=True)
    train_tower(model, tokenizer, examples, arguments.tower_steps, arguments.device)
    held_out = _generate((HELD_OUT_SEED, 256, max(LEVELS)))

    def save(folder: Path) -> None:
        model.half().save_pretrained(folder)
        model.float()
        processor.save_pretrained(folder)

    def report(step: int) -> None:
        if step % 500 == 0 or step == arguments.steps:
            by_style = {
                name: accuracy(model, processor, held_out, opening)[0]
                for name, opening in (("at a glance", "<answer>"), ("looking first", "<think>"))
            }
            free, looks = accuracy(model, processor, held_out)
            sampled, sampled_looks = accuracy(model, processor, held_out, sample=True)
            print(
                f"    held out: {free:.1%} ({looks:.0%} look), sampled {sampled:.1%} "
                f"({sampled_looks:.0%} look); "
                + ", ".join(f"{name} {value:.1%}" for name, value in by_style.items()),
                flush=True,
            )
        if step in arguments.keep:
            save(arguments.out.with_name(f"{arguments.out.name}_{step}"))

    batches = TextBatches(model, processor, examples, arguments.device)
    train_text(batches, arguments.steps, arguments.lr, report)
    save(arguments.out)
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
