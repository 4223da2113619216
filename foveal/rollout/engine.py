"""The rollout engine: the trainer's own weights, each prompt once, one readable cycle.

    work = scheduler.schedule()          who runs, and with which pages       (host)
    runner.prefill, runner.recompute     prompts into the cache               (device)
    runner.start, runner.decode          a burst of tokens for every row      (device)
    scheduler.advance                    who has finished                     (host)

There is no second copy of the weights, no merge and no transfer: a rollout sees the adapter as
the optimizer left it. The log-probability of each token is taken from the raw logits:
softmax(logits / temperature) over the whole vocabulary, before penalties, suppression and
truncation, and is never renormalised. That is the trainer's definition
(``foveal.models.forward.completion_logprobs``).
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveal.kernels.philox import row_seed
from foveal.memory.idle import make_room
from foveal.models.attention import fast_vision_attention
from foveal.models.decoder import Decoder
from foveal.models.family import family_of, placeholder_ids, stock_model, vision_is_trained
from foveal.models.forward import FeatureCache
from foveal.models.precision import evaluating
from foveal.models.state import say, state_of
from foveal.models.vision_mlp import fast_vision_mlp
from foveal.models.vision_norm import fast_vision_norms
from foveal.rollout.backend import OnTokens
from foveal.rollout.budget import GIB, CacheBudget
from foveal.rollout.capture import Demand
from foveal.rollout.fingerprint import (
    fingerprint_of,
    parameters_of,
    structure_of,
    switches_of,
)
from foveal.rollout.pages import PagePool
from foveal.rollout.requests import check_count, check_lengths
from foveal.rollout.runner import Drawn, Runner
from foveal.rollout.sampler import Sampler
from foveal.rollout.scheduler import Request, Scheduler, Sequence
from foveal.rollout.stopping import StopRule
from foveal.rollout.transformers_backend import stop_token_ids
from foveal.types import PAGE, Completion, Group, Prompt, SamplingParams


@dataclass(frozen=True, slots=True)
class PromptState:
    """What the engine keeps with a request."""

    prompt: Prompt
    base_position: int
    """Rotary position of the first completion token."""
    seeds: tuple[int, ...]
    """Of each completion: its tokens depend on nothing else that is random."""


class Engine:
    """Samples completions; a :class:`foveal.rollout.backend.RolloutBackend`.

    Args:
        model: stock model or its PEFT wrapper; adapters stay unmerged.
        tokenizer: decodes completions.
        features: encoded pictures, shared with the trainer; its own if None.
        max_rows: most completions decoded at a time; more wait their turn.
        max_tokens: most tokens of a prompt and of a completion, each.
        cache_bytes: most bytes of the KV cache; by default what ``gpu_memory_utilization`` of
            the model's state, or else 0.9, leaves of the GPU.
        cache_dtype: of the KV cache: the model's type, or ``torch.float8_e4m3fn`` (half the
            bytes, rounded to 3 bits of mantissa: log-probabilities then differ from the
            trainer's by what the rounding costs).
        graphs: capture CUDA graphs.
        fused: use the fused kernels where the model allows it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        features: FeatureCache | None = None,
        *,
        max_rows: int = 128,
        max_tokens: int | None = None,
        cache_bytes: int | None = None,
        cache_dtype: torch.dtype | None = None,
        graphs: bool = True,
        fused: bool = True,
    ) -> None:
        self.model, self.tokenizer = stock_model(model), tokenizer
        self.features = features if features is not None else FeatureCache()
        self._own_features = features is None
        fast_vision_attention(model)
        fast_vision_mlp(model)
        fast_vision_norms(model)
        self.stop_ids = stop_token_ids(stock_model(model).generation_config, tokenizer)
        self.budget = CacheBudget(state_of(model).gpu_memory_utilization, cache_bytes)
        self._options = {"cache_dtype": cache_dtype, "graphs": graphs, "fused": fused}
        self.max_rows = max_rows
        self.max_tokens = max_tokens or _longest(model)
        self._runner: Runner | None = None
        self._scheduler: Scheduler | None = None
        self._structure: Any = None
        self._switches: tuple[bool, ...] = ()
        self._weights: Any = None
        self._submitted = 0
        self._planned_pages = 0
        self.timings: dict[str, float] = defaultdict(float)
        """Seconds of the last rollout by part."""
        self._keeping = False

    # -- the interface

    def generate(
        self,
        prompts: Rows[Prompt],
        n: int,
        sampling: SamplingParams,
        on_tokens: OnTokens | None = None,
    ) -> list[Group]:
        """See :class:`foveal.rollout.backend.RolloutBackend`.

        Raises:
            ValueError: for several greedy completions of one prompt, which would all be equal; for
                a prompt or a completion that is too long, or does not fit the cache.
        """
        check_count(n, sampling)
        check_lengths(prompts, sampling, self.max_tokens)
        if not prompts:
            return []
        self.timings = defaultdict(float)
        with evaluating(self.model):
            with self._timed("adapters"):
                runner = self._ready_runner()
            with self._timed("cache"):
                requests = [self._request(prompt, n, sampling) for prompt in prompts]
                demand = self._demand(runner, requests) if self._keeping else None
                scheduler = self._ready_cache(runner, requests, demand)
                if demand is not None:
                    runner.steps.capture.begin(demand)
            rule = StopRule(self.tokenizer, self.stop_ids, sampling)
            sampler = Sampler(
                sampling, placeholder_ids(self.model), runner.decoder.vocabulary, runner.device
            )
            for request in requests:
                scheduler.add(request)
            first = requests[0].index
            try:
                while scheduler.unfinished:
                    self._cycle(runner, scheduler, sampler, rule, on_tokens, first)
            except BaseException:
                # The rows under way are lost; the next call starts from an empty cache.
                self.standby()
                raise
            finally:
                if self._own_features:
                    self.features.clear()
        with self._timed("texts"):
            groups = [self._group(runner, request, rule) for request in requests]
        runner.steps.capture.end()
        return groups

    @contextlib.contextmanager
    def keeping_layer_inputs(self) -> Iterator[None]:
        """Completions drawn within it carry what their tokens put into each layer, for the training
        pass at the same weights: ``Completion.layer_inputs``.

        Raises:
            ValueError: for a cache of another type than the model's: its rounding is part of what
                is sampled, and no part of the training pass.
        """
        cache, own = self._options["cache_dtype"], stock_model(self.model).dtype
        if cache not in (None, own):
            raise ValueError(
                f"layer inputs cannot be kept: the KV cache is {cache} and the model {own}; leave "
                "cache_dtype None, or set gradient_checkpointing=True"
            )
        before, self._keeping = self._keeping, True
        try:
            yield
        finally:
            self._keeping = before

    def standby(self) -> None:
        """Free the cache for others of this process. The next rollout takes it anew."""
        self._scheduler = None
        if self._runner is not None:
            self._runner.sleep()

    def share_features(self, features: FeatureCache | None) -> None:
        """Keep encoded pictures there from now on; whose they are clears them. None: keep them no
        longer than a call takes."""
        self._own_features = features is None
        self.features = FeatureCache() if features is None else features
        if self._runner is not None:
            self._runner.features = self.features

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of a model has no engine yet: graphs and pages belong to the weights they read."""

    def __reduce__(self) -> Any:
        return type(None), ()

    @property
    def captures(self) -> int:
        """CUDA graphs captured so far."""
        return 0 if self._runner is None else self._runner.steps.captures

    # -- the cycle

    def _cycle(
        self,
        runner: Runner,
        scheduler: Scheduler,
        sampler: Sampler,
        rule: StopRule,
        on_tokens: OnTokens | None,
        first: int,
    ) -> None:
        work = scheduler.schedule()
        with self._timed("vision"):
            runner.encode(work.prefill)
        with self._timed("prefill"):
            runner.prefill(work.prefill)
            runner.recompute(work.recompute)
            self._advance(scheduler, work.start, runner.start(work.start, sampler), rule,
                          on_tokens, first)  # fmt: skip
        rows = [row for row in work.decode if not row.finished]
        if not rows or not work.steps:
            return
        with self._timed("decode"):
            for drawn in runner.decode(rows, work.steps, sampler, keeping=self._keeping):
                self._advance(scheduler, rows, drawn, rule, on_tokens, first)

    def _advance(
        self,
        scheduler: Scheduler,
        rows: Rows[Sequence],
        drawn: list[Drawn],
        rule: StopRule,
        on_tokens: OnTokens | None,
        first: int,
    ) -> None:
        for row, pairs in zip(rows, drawn, strict=True):
            if row.finished:
                continue
            known = len(row.ids)
            scheduler.advance(row, pairs, lambda r: rule.ends(r.ids))
            if on_tokens is not None:
                on_tokens(row.request.index - first, row.sample, row.ids[known:])

    # -- before it

    def _ready_runner(self) -> Runner:
        """The runner, with the adapter as it is now."""
        decoder = Decoder(self.model)
        parameters = parameters_of(self.model)
        structure, switches = structure_of(decoder, parameters), switches_of(decoder)
        # Packed adapters can be switched off; graphs of the model's own layers have them inside.
        packed = self._runner is not None and self._runner.steps.lora is not None
        new = False
        if (
            self._runner is None
            or structure != self._structure
            or (not packed and switches != self._switches)
        ):
            self.standby()
            self._structure, new = structure, True
            self._runner = Runner(
                self.model, self.features, max_rows=self.max_rows, max_tokens=self.max_tokens,
                **self._options,
            )  # fmt: skip
            self._say_form(self._runner)
        # A pack that was just made may be that of adapters that are off.
        self._runner.steps.refresh(unchanged=not new and switches == self._switches)
        self._switches = switches
        self._notice_update(fingerprint_of(parameters, switches))
        return self._runner

    @staticmethod
    def _say_form(runner: Runner) -> None:
        """Where steps take a slower form than they could, and why."""
        if runner.device.type != "cuda":
            return
        if runner.steps.why_plain is not None:
            say(f"rollouts call the model's own layers: {runner.steps.why_plain}")
        if runner.steps.why_no_graphs is not None:
            say(f"rollouts run without CUDA graphs: {runner.steps.why_no_graphs}")

    def _notice_update(self, now: Any) -> None:
        """Forget prompts and pictures computed with weights that have changed since."""
        if now == self._weights:
            return
        self._weights = now
        if self._scheduler is not None:
            self._scheduler.clear_prefixes()
        if vision_is_trained(self.model):
            self.features.clear()

    def _request(self, prompt: Prompt, n: int, sampling: SamplingParams) -> Request:
        stock = stock_model(self.model)
        length = len(prompt.ids)
        positions = family_of(self.model).row_positions(stock.config, prompt, length + 1)
        # Greedy draws nothing, so it leaves the global random state alone.
        seed = 0 if sampling.temperature == 0 else sampling.seed
        if seed is None:
            seed = int(torch.randint(1 << 62, ()).item())
        place = self._submitted
        self._submitted += 1
        state = PromptState(
            prompt,
            int(positions[0, length]),
            tuple(row_seed(seed, prompt.index, sample) for sample in range(n)),
        )
        return Request(
            index=place,
            prompt_tokens=length,
            n=n,
            max_tokens=sampling.max_tokens,
            key=(prompt.ids, tuple(image.digest for image in prompt.images)),
            payload=state,
        )

    def _ready_cache(
        self, runner: Runner, requests: Rows[Request], demand: Demand | None
    ) -> Scheduler:
        """A cache that holds these requests if the budget allows it, with room for layer inputs
        beside it if there is a demand; kept if it is there."""
        wanted = self.budget.pages_wanted(requests, self.max_rows)
        token_bytes = runner.steps.capture.token_bytes
        reserved = 0 if demand is None else demand.places * token_bytes
        pages = self.budget.pages(
            wanted, runner.page_bytes, runner.device, requests, runner.held, reserved
        )
        held = 0 if self._scheduler is None else self._scheduler.pool.size
        # A larger cache than this would take the room that layer inputs need.
        if self._scheduler is not None and (held == pages or (held > pages and not reserved)):
            return self._scheduler
        self.standby()
        make_room(runner.device, (pages + 1) * runner.page_bytes)
        runner.wake(pages + 1)
        runner.prepare(min(self.max_rows, sum(r.n for r in requests)), keeping=self._keeping)
        self._say_plan(runner, pages)
        self._scheduler = Scheduler(PagePool(pages + 1), self.max_rows, runner.burst)
        return self._scheduler

    def _demand(self, runner: Runner, requests: Rows[Request]) -> Demand:
        counts = [(request.n, request.max_tokens) for request in requests]
        return Demand.of(counts, runner.burst, self.max_rows)

    def _say_plan(self, runner: Runner, pages: int) -> None:
        """One line about what rollouts take, when that is first known and when it grows."""
        if pages <= self._planned_pages or runner.device.type != "cuda":
            return
        self._planned_pages = pages
        allowed = self.budget.bytes_allowed(runner.device) / GIB
        graphs = (
            f", CUDA graphs {runner.steps.graph_bytes / GIB:.2f} GiB"
            if runner.steps.captures
            else ""
        )
        say(
            f"rollouts: at most {self.max_rows} completions at once, KV cache "
            f"{(pages + 1) * runner.page_bytes / GIB:.2f} GiB ({pages} pages of {PAGE} tokens, "
            f"{str(runner.cache_dtype).removeprefix('torch.')}; {allowed:.1f} GiB more allowed), "
            f"workspace {runner.steps.workspace_bytes / GIB:.2f} GiB{graphs}"
        )

    # -- after it

    def _group(self, runner: Runner, request: Request, rule: StopRule) -> Group:
        completions, capture = [], runner.steps.capture
        for sequence in request.sequences:
            ids, text, reason = rule.finish(sequence.ids, sequence.finished == "stop")
            kept = capture.take(sequence, len(ids) - 1) if self._keeping else None
            completions.append(Completion(ids, text, reason, tuple(sequence.logprobs), kept))
        return Group(request.payload.prompt, tuple(completions))

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.timings[part] += time.perf_counter() - begin


def engine_of(
    model: nn.Module,
    tokenizer: Any,
    *,
    features: FeatureCache | None = None,
    max_rows: int | None = None,
) -> Engine:
    """The engine of a model: one for whoever samples from it, so that graphs are captured once.

    Args:
        model: stock model or its PEFT wrapper.
        tokenizer: decodes completions.
        features: where encoded pictures are kept from now on; no longer than a call if None.
        max_rows: most completions decoded at a time; as before, or 128, if None.
    """
    state = state_of(model)
    engine: Engine | None = state.engine
    fits = engine is not None and engine.tokenizer is tokenizer
    if engine is None or not fits or max_rows not in (None, engine.max_rows):
        state.engine = engine = Engine(model, tokenizer, features, max_rows=max_rows or 128)
    engine.share_features(features)
    return engine


def _longest(model: nn.Module) -> int:
    """Tokens of a prompt or a completion where nobody has said: the model's own bound."""
    own = stock_model(model).config.get_text_config().max_position_embeddings
    return min(state_of(model).max_seq_length or own, own, 32768)
