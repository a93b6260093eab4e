"""A stand-in generator for tests and benchmarks: no model, only draws that depend on the prompt and the adapter.

It is right at a rate that grows with the adapter's version and differs between templates, so that both halves of
the loop have something to learn.
"""

import time
from collections.abc import Iterator
from random import Random

from grpo_ray.canonical import rng, short
from grpo_ray.generators._names import lost
from grpo_ray.protocols import Generator
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Prompt, Rollout, Sampling, Wave

END = 0
"""The token after the last character; the other token ids are code points."""


def make_generator(
    *,
    model: str,
    rate: float = 0.3,
    gain: float = 0.05,
    spread: float = 0.2,
    lost: float = 0.0,
    seconds: float = 0.0,
    form: str = "Answer: {answer}",
) -> Generator:
    """Right with probability `rate + gain · version`, up to `spread` more or less by template.

    A prompt is lost with probability `lost`; a wave takes `seconds`.
    """
    return Canned(model, rate, gain, spread, lost, seconds, form)


class Canned:
    def __init__(
        self, model: str, rate: float, gain: float, spread: float, lost: float, seconds: float, form: str
    ) -> None:
        self.model = f"canned:{model}"
        self.rate, self.gain, self.spread, self.lost = rate, gain, spread, lost
        self.seconds = seconds
        self.form = form

    def sample(self, wave: Wave, adapter: Adapter | None, content: AdapterBytes | None) -> Iterator[Group | LostGroup]:
        if adapter and content is None:
            raise ValueError(f"the bytes of adapter {adapter.hash} did not come with the wave")
        began = time.monotonic()
        for number, prompt in enumerate(wave.prompts, start=1):
            time.sleep(max(0.0, began + self.seconds * number / len(wave.prompts) - time.monotonic()))
            yield self._group(prompt, wave.sampling, adapter)

    def close(self) -> None:
        """Nothing to give back."""

    def _group(self, prompt: Prompt, sampling: Sampling, adapter: Adapter | None) -> Group | LostGroup:
        if rng("lost", prompt.id).random() < self.lost:
            return lost(prompt, "lost on purpose, by the setting `lost`")
        odds = self._odds(prompt, adapter)
        rollouts = tuple(self._rollout(prompt, sampling, adapter, odds, i) for i in range(sampling.group_size))
        return Group(
            id=short("g", prompt.id),
            prompt=prompt,
            rollouts=rollouts,
            prompt_token_ids=tuple(ord(c) for message in prompt.messages for c in message.content),
            sampling=sampling,
            model=self.model,
            adapter=adapter.hash if adapter else None,
        )

    def _odds(self, prompt: Prompt, adapter: Adapter | None) -> float:
        skill = rng("skill", prompt.template_id).uniform(-self.spread, self.spread)
        return self.rate + skill + self.gain * (adapter.version if adapter else 0)

    def _rollout(self, prompt: Prompt, sampling: Sampling, adapter: Adapter | None, odds: float, index: int) -> Rollout:
        seed = sampling.seed + index
        draw = rng(seed, prompt.id, adapter.hash if adapter else None, index)
        right = prompt.task.answer or ""
        text = self.form.format(answer=right if draw.random() < odds else _wrong(right, draw))[: sampling.max_tokens]
        tokens = (*(ord(c) for c in text), END)
        return Rollout(
            id=short("r", prompt.id, index),
            index=index,
            text=text,
            token_ids=tokens,
            logprobs=tuple(round(-draw.random(), 6) for _ in tokens),
            finish_reason="stop",
            seed=seed,
        )


def _wrong(answer: str, draw: Random) -> str:
    """Another number of the same size, or the answer with a letter more."""
    if answer.isdigit():
        return str(int(answer) + draw.randint(1, 9))
    return answer + draw.choice("xyz")
