"""Completions from any OpenAI-compatible chat endpoint (vLLM, Ollama, LM Studio, mlx_lm.server), by URL.

For models that are not MLX's: data generation with `trainer: null`. Endpoints seldom tell token ids and never the
log-probabilities under the filtered distribution, so no adapter can be trained on their rollouts, and none be served.

They also differ in which parameters they take: one that is refused by name is left out from then on, and where `n`
is ignored the group is asked for one completion at a time. Whatever goes wrong is a LostGroup with the reason.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from math import inf
from typing import Any

import openai
from openai import DefaultHttpx2Client, OpenAI

from grpo_ray.canonical import short
from grpo_ray.errors import ConfigError
from grpo_ray.generators._names import lost, rollout_seed
from grpo_ray.llm.addresses import brief, find_key, is_local, sendable, shown
from grpo_ray.protocols import Generator
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Prompt, Rollout, Sampling, Wave

TRAINABLE = False
"""Its rollouts lack what a trainer needs; `launch.py` refuses the two together before a run begins."""
OPTIONAL = ("n", "seed", "logprobs")
"""Parameters to do without where an endpoint refuses them."""
CAPS = ("max_tokens", "max_completion_tokens")
SEED_BITS = 31
"""Some servers keep seeds in 32 bits."""


def make_generator(
    *,
    model: str,
    base_url: str,
    served_model: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
    concurrency: int = 8,
    timeout_s: float = 300.0,
    retries: int = 3,
) -> Generator:
    """The endpoint at `base_url` (…/v1), asked for `served_model` (None: the recipe's model), `concurrency` prompts
    at a time; 408, 409, 429, 5xx and lost connections are tried `retries` times more. The key is read from the
    environment variable `api_key_env`; servers on loopback need none. Raises ConfigError.
    """
    check_settings(
        model=model,
        base_url=base_url,
        served_model=served_model,
        concurrency=concurrency,
        timeout_s=timeout_s,
        retries=retries,
    )
    client = OpenAI(
        api_key=find_key(base_url, api_key_env, "generator.settings.api_key_env"),
        base_url=base_url,
        timeout=timeout_s,
        max_retries=retries,
        http_client=DefaultHttpx2Client(trust_env=False) if is_local(base_url) else None,
    )
    return OpenAICompatible(client, served_model or model, concurrency)


def check_settings(
    *,
    model: str,
    base_url: str,
    served_model: str | None = None,
    concurrency: int = 1,
    timeout_s: float = 1.0,
    retries: int = 0,
    **others: Any,
) -> None:
    """Raise ConfigError listing every value of make_generator's settings that can't be; nothing is asked for it."""
    wrong: list[str] = []
    if not base_url.startswith(("http://", "https://")):
        wrong.append(f"base_url is {shown(base_url)!r}: expected http(s)://HOST…/v1")
    if not served_model and model.startswith("bundled:"):
        wrong.append(
            f"served_model is needed: no endpoint serves the recipe's model {model!r}; "
            f"set it to a model of {shown(base_url)}"
        )
    if concurrency < 1 or not 0 < timeout_s < inf or retries < 0:
        wrong.append("concurrency must be 1 or more, timeout_s above 0, retries 0 or more")
    if wrong:
        raise ConfigError("\n".join(wrong))


class Unanswered(Exception):
    """The endpoint gave no completion that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class _Said:
    """One choice: its message, and what was told of its tokens."""

    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    seed: int


class OpenAICompatible:
    """One client and what it has found out about its server."""

    def __init__(self, client: OpenAI, model: str, concurrency: int) -> None:
        self.client = client
        self.model = model
        self.concurrency = concurrency
        self.refused: set[str] = set()
        """Parameters this server doesn't take."""
        self.cap = 0
        """Which of `CAPS` it takes."""

    def sample(self, wave: Wave, adapter: Adapter | None, content: AdapterBytes | None) -> Iterator[Group | LostGroup]:
        if adapter or content:
            raise ValueError(f"an endpoint takes no adapter; the wave came with {adapter.hash if adapter else 'one'}")
        with ThreadPoolExecutor(self.concurrency) as pool:
            flights = [pool.submit(self._group, prompt, wave.sampling) for prompt in wave.prompts]
            try:
                for flight in as_completed(flights):
                    yield flight.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        self.client.close()

    def _group(self, prompt: Prompt, sampling: Sampling) -> Group | LostGroup:
        started = time.monotonic()
        try:
            said, asked = self._said(prompt, sampling)
        except Unanswered as fault:
            return lost(prompt, str(fault))
        except (openai.OpenAIError, json.JSONDecodeError) as fault:
            return lost(prompt, self._explained(fault))
        return Group(
            id=short("g", prompt.id),
            prompt=prompt,
            rollouts=tuple(_rollout(prompt, index, one, sampling) for index, one in enumerate(said)),
            prompt_token_ids=asked,
            sampling=sampling,
            model=self.model,
            adapter=None,
            seconds=time.monotonic() - started,
        )

    def _said(self, prompt: Prompt, sampling: Sampling) -> tuple[list[_Said], tuple[int, ...]]:
        """A completion a rollout, and the prompt's token ids where they are told."""
        said: list[_Said] = []
        asked: tuple[int, ...] = ()
        while (missing := sampling.group_size - len(said)) > 0:
            together = missing if "n" not in self.refused else 1
            seed = rollout_seed(sampling.seed, prompt.id, len(said)) >> (63 - SEED_BITS)
            answer = self._ask(prompt, sampling, together, seed)
            choices = list(getattr(answer, "choices", None) or [])
            if not choices:
                raise Unanswered(f"{self._where} did not send a chat completion; does the URL end in /v1?")
            if len(choices) < together:
                self.refused.add("n")
            said += [self._choice(choice, seed) for choice in choices[:missing]]
            asked = asked or _ids(getattr(answer, "prompt_token_ids", None))
        return said, asked

    def _ask(self, prompt: Prompt, sampling: Sampling, together: int, seed: int) -> Any:
        while True:
            asked = self._request(prompt, sampling, together, seed)
            try:
                return self.client.chat.completions.create(**asked)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as fault:
                if not self._learnt(asked, str(fault)):
                    raise

    def _request(self, prompt: Prompt, sampling: Sampling, together: int, seed: int) -> dict[str, Any]:
        used = {"top_k": sampling.top_k or None, "min_p": sampling.min_p or None}
        used["repetition_penalty"] = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
        request = {
            "model": self.model,
            "messages": [{"role": one.role, "content": sendable(one.content)} for one in prompt.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            CAPS[self.cap]: sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "n": together if together > 1 else None,
            "seed": seed,
            "logprobs": True,
            "extra_body": {name: value for name, value in used.items() if value is not None} or None,
        }
        return {name: value for name, value in request.items() if value is not None and name not in self.refused}

    def _learnt(self, asked: dict[str, Any], complaint: str) -> bool:
        """Whether the complaint names a parameter that can be left out, or called by its other name, from now on."""
        if CAPS[self.cap] in complaint and CAPS[1 - self.cap] in complaint and CAPS[self.cap] in asked and not self.cap:
            self.cap = 1
            return True
        words = complaint.replace("'", " ").replace('"', " ").replace("`", " ").split()
        found = [name for name in OPTIONAL if name in asked and name in words]
        if found == ["n"] and asked["n"] == 1:
            return False
        self.refused.update(found)
        return bool(found)

    def _choice(self, choice: Any, seed: int) -> _Said:
        message, reason = choice.message, choice.finish_reason
        if refusal := getattr(message, "refusal", None):
            raise Unanswered(f"{self.model} refused: {brief(refusal)}")
        if reason not in ("stop", "length"):
            raise Unanswered(f"{self.model} ended with finish_reason {reason!r} in place of a completion")
        thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
        text = f"<think>{thought}</think>{message.content or ''}" if thought else message.content or ""
        told = getattr(choice.logprobs, "content", None) or []
        return _Said(
            text, reason, _ids(getattr(choice, "token_ids", None)), tuple(float(one.logprob) for one in told), seed
        )

    @property
    def _where(self) -> str:
        return shown(str(self.client.base_url)).rstrip("/")

    def _explained(self, fault: Exception) -> str:
        where, text = self._where, brief(getattr(fault, "message", None) or fault)
        match fault:
            case openai.APITimeoutError():
                return f"{where} did not answer in time; see generator.settings.timeout_s"
            case openai.APIConnectionError():
                return f"can't reach {where} ({brief(fault.__cause__ or fault)}); start that server, or set base_url"
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return f"{where} refused the key; see generator.settings.api_key_env: {text}"
            case openai.NotFoundError():
                return (
                    f"{where} knows no model {self.model!r}, or no such route: {text}; set generator.settings.served_model "
                    "to a model that it serves, or generator.settings.base_url to a URL that ends in /v1"
                )
            case openai.BadRequestError() | openai.UnprocessableEntityError():
                return (
                    f"{where} refused the request for {self.model!r}: {text}; change what it names under sampling, or "
                    "generator.settings.served_model"
                )
        return f"{where}: {text}; if it stays so, check generator.settings.base_url and generator.settings.served_model"


def _rollout(prompt: Prompt, index: int, said: _Said, sampling: Sampling) -> Rollout:
    """Endpoints tell the bare model's log-probabilities, which are also the sampler's where nothing was changed."""
    same = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)
    same = same and sampling.repetition_penalty == 1
    return Rollout(
        id=short("r", prompt.id, index),
        index=index,
        text=said.text,
        token_ids=said.token_ids,
        logprobs=said.logprobs if same else (),
        finish_reason="stop" if said.finish_reason == "stop" else "length",
        seed=said.seed,
        model_logprobs=said.logprobs,
    )


def _ids(told: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(int(token) for token in told or ())
