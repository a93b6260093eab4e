"""The generator over HTTP keeps the Generator protocol, against servers on loopback that behave like those there are."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from serving import running, stand_in
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from grpo_ray.canonical import short
from grpo_ray.cli import app
from grpo_ray.errors import ConfigError
from grpo_ray.generators.openai_compatible import make_generator
from grpo_ray.mock_openai import Behaviour, refusal
from grpo_ray.types import Adapter, AdapterBytes, Group, LostGroup, Message, Prompt, Sampling, Task, Wave

SAMPLING = Sampling(group_size=3, max_tokens=20, seed=4)
Body = dict[str, Any]


def prompt_of(text: str, *before: Message) -> Prompt:
    return Prompt(short("p", text), "t", Task(short("k", text), text), (*before, Message("user", text)))


def sample(url: str, *texts: str, sampling: Sampling = SAMPLING, **settings: Any) -> list[Group | LostGroup]:
    """The groups of one wave, in the prompts' order."""
    generator = make_generator(model="stand-in", base_url=url, **{"retries": 0, **settings})
    prompts = tuple(prompt_of(text) for text in texts)
    found = {group.prompt.id: group for group in generator.sample(Wave("w", prompts, sampling), None, None)}
    generator.close()
    return [found[prompt.id] for prompt in prompts]


@contextmanager
def server(answer: Callable[[Body], Any]) -> Iterator[tuple[str, list[Body]]]:
    """An endpoint that answers as told (choices, or a whole response); yields its URL and the requests it got."""
    requests: list[Body] = []

    async def chat(request: Request) -> Response:
        body = await request.json()
        requests.append(body)
        said = answer(body)
        return said if isinstance(said, Response) else JSONResponse(completion(said))

    with running(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as url:
        yield url, requests


def completion(choices: list[Body], **more: Any) -> Body:
    numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": numbered, **more}


def choice(text: str | None, reason: str = "stop", **more: Any) -> Body:
    return {"message": {"role": "assistant", "content": text}, "finish_reason": reason, **more}


def reason_of(group: Group | LostGroup) -> str:
    assert isinstance(group, LostGroup)
    assert group.id == short("g", group.prompt.id)
    return group.reason


def test_the_bundled_server_gives_whole_groups() -> None:
    ways = Behaviour(remember=True)
    with stand_in(ways) as url:
        groups = sample(url, "one", "two")
    for group in groups:
        assert isinstance(group, Group)
        assert (group.id, group.model, group.adapter) == (short("g", group.prompt.id), "stand-in", None)
        assert [one.id for one in group.rollouts] == [short("r", group.prompt.id, i) for i in range(3)]
        assert all(one.text.startswith("I am a stand-in") and one.finish_reason == "stop" for one in group.rollouts)
        assert all(one.token_ids == one.logprobs == one.model_logprobs == () for one in group.rollouts)
    assert len({body["seed"] for body in ways.requests}) == len(ways.requests), "each completion has its own seed"


def test_a_server_that_honours_n_is_asked_once() -> None:
    with server(lambda body: [choice(f"{i}") for i in range(body["n"])]) as (url, requests):
        (group,) = sample(url, "one")
    assert isinstance(group, Group) and [one.text for one in group.rollouts] == ["0", "1", "2"]
    assert [body["n"] for body in requests] == [3]


def test_a_server_that_refuses_n_is_asked_for_each() -> None:
    def answer(body: Body) -> Any:
        return refusal(400, "Unknown parameter: 'n'", "n") if "n" in body else [choice(f"seed {body['seed']}")]

    with server(answer) as (url, requests):
        (group,) = sample(url, "one")
    assert isinstance(group, Group) and len({one.text for one in group.rollouts}) == 3
    assert [one.text for one in group.rollouts] == [f"seed {one.seed}" for one in group.rollouts]
    assert len(requests) == 4


def test_refused_parameters_are_left_out_from_then_on() -> None:
    def answer(body: Body) -> Any:
        for name in ("logprobs", "seed"):
            if name in body:
                return refusal(400, f"`{name}` is not supported by this model", name)
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return [choice("fine") for _ in range(body["n"])]

    with server(answer) as (url, requests):
        groups = sample(url, "one", "two", concurrency=1)
    assert all(isinstance(group, Group) for group in groups)
    assert len(requests) == 5
    assert requests[-1]["max_completion_tokens"] == 20


def test_sampling_settings_reach_the_server_and_neutral_ones_do_not() -> None:
    changed = Sampling(2, 0.5, 0.9, 5, 7, seed=1, min_p=0.1, repetition_penalty=1.2, stop=("END",))
    with server(lambda body: [choice("a"), choice("b", "length")]) as (url, requests):
        (group,) = sample(url, "one", sampling=changed, served_model="theirs")
        sample(url, "one", sampling=replace(SAMPLING, group_size=2))
    assert isinstance(group, Group) and group.model == "theirs" and group.sampling == changed
    assert [one.finish_reason for one in group.rollouts] == ["stop", "length"]
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "max_tokens": 7}
    assert {**wanted, "stop": ["END"], "model": "theirs"}.items() <= {
        **requests[0],
        "stop": requests[0]["stop"],
    }.items()
    assert not {"top_p", "top_k", "min_p", "repetition_penalty", "stop"} & requests[1].keys()


def test_log_probabilities_and_token_ids_are_kept_where_they_are_told() -> None:
    told = {"content": [{"token": "a", "logprob": -0.25, "top_logprobs": []}, {"token": "b", "logprob": -1.5}]}

    def answer(body: Body) -> Response:
        choices = [choice("ab", logprobs=told, token_ids=[7, 8]) for _ in range(body["n"])]
        return JSONResponse(completion(choices, prompt_token_ids=[1, 2]))

    with server(answer) as (url, requests):
        (plain,) = sample(url, "one")
        (warm,) = sample(url, "one", sampling=replace(SAMPLING, temperature=0.5))
    assert isinstance(plain, Group) and isinstance(warm, Group) and requests[0]["logprobs"] is True
    assert plain.prompt_token_ids == (1, 2)
    assert all(
        (one.token_ids, one.logprobs, one.model_logprobs) == ((7, 8), (-0.25, -1.5), (-0.25, -1.5))
        for one in plain.rollouts
    )
    assert all((one.logprobs, one.model_logprobs) == ((), (-0.25, -1.5)) for one in warm.rollouts), (
        "not what was drawn from"
    )


def test_a_thought_told_apart_comes_back_into_the_text() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "2+2"}
    with server(lambda body: [{"message": message, "finish_reason": "stop"}] * body["n"]) as (url, _):
        (group,) = sample(url, "one")
    assert isinstance(group, Group) and {one.text for one in group.rollouts} == {"<think>2+2</think>4"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda body: refusal(400, "the prompt is too long"), "too long"),
        (lambda body: refusal(401, "no such key"), "api_key_env"),
        (lambda body: refusal(404, "no such model"), "knows no model 'stand-in'"),
        (lambda body: refusal(404, "no such model"), "set generator.settings.served_model"),
        (lambda body: refusal(400, "the prompt is too long"), "generator.settings.served_model"),
        (lambda body: refusal(503, "loading"), "check generator.settings.base_url"),
        (lambda body: refusal(429, "You exceeded your current quota", code="insufficient_quota"), "quota"),
        (lambda body: refusal(503, "loading"), "loading"),
        (lambda body: JSONResponse({"choices": []}), "does the URL end in /v1"),
        (lambda body: Response("<html>", media_type="application/json"), "127.0.0.1"),
        (lambda body: Response("<html>", media_type="text/html"), "does the URL end in /v1"),
        (lambda body: [choice(None, "content_filter")], "content_filter"),
        (lambda body: [{"message": {"role": "assistant", "content": None, "refusal": "I won't"}, "finish_reason": "stop"}], "I won't"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_a_lost_group_with_the_reason(answer: Callable[[Body], Any], expected: str) -> None:
    with server(lambda body: answer(body) if body["messages"][-1]["content"] == "bad" else [choice("fine")] * 3) as (
        url,
        _,
    ):
        bad, fine = sample(url, "bad", "fine")
    assert expected in reason_of(bad)
    assert isinstance(fine, Group)


def test_timeouts_and_absent_servers_are_lost_groups() -> None:
    with stand_in(Behaviour(delay_s=5.0)) as url:
        assert "did not answer in time" in reason_of(sample(url, "one", timeout_s=0.2)[0])
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    assert "can't reach" in reason_of(sample(f"http://127.0.0.1:{port}/v1", "one")[0])


def test_a_password_in_the_url_is_not_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    told = [reason_of(sample(f"http://me:secret@127.0.0.1:{port}/v1", "one")[0])]
    here = "http://me:secret@here/v1"
    settings: list[dict[str, Any]] = [{"base_url": "ftp" + here[4:]}, {"base_url": here, "model": "bundled:nano"}]
    for wrong in settings:
        with pytest.raises(ConfigError) as caught:
            make_generator(**{"model": "m", **wrong})
        told.append(str(caught.value))
    assert (
        f"can't reach http://127.0.0.1:{port}/v1" in told[0] and "ftp://here/v1" in told[1] and "http://here" in told[2]
    )
    assert not any("secret" in words for words in told)


def test_passing_faults_are_tried_again() -> None:
    with stand_in(Behaviour(limit_every=3, retry_after_s=0.01)) as url:
        assert all(isinstance(group, Group) for group in sample(url, "one", "two", retries=3, concurrency=1))


def test_an_adapter_is_refused() -> None:
    generator = make_generator(model="m", base_url="http://127.0.0.1:9/v1")
    wave = Wave("w", (prompt_of("one"),), SAMPLING)
    with pytest.raises(ValueError, match="h1"):
        list(generator.sample(wave, Adapter("h1", 1, None, 0), AdapterBytes(b"", b"")))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"base_url": "localhost:1"}, "base_url"),
        ({"base_url": "https://example.org/v1", "api_key_env": "GRPO_RAY_NO_SUCH_KEY"}, "GRPO_RAY_NO_SUCH_KEY"),
        ({"base_url": "http://127.0.0.1:9/v1", "concurrency": 0}, "concurrency"),
        ({"base_url": "http://127.0.0.1:9/v1", "model": "bundled:nano"}, "served_model is needed"),
    ],
)
def test_wrong_settings_name_themselves(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_generator(**{"model": "m", **settings})


# ── in a run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def config(folder: Path, url: str, **changes: Any) -> Path:
    """A run over sums, its answers from `url`, all else in memory and in this process."""
    sums = [{"question": f"What is {n} + {n + 1}?", "answer": str(2 * n + 1)} for n in range(20)]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    values: dict[str, Any] = {
        "steps": 2,
        "model": "theirs",
        "tasks": [{"name": "jsonl", "settings": {"path": "sums.jsonl"}}],
        "splits": {"validation": 3, "heldout": 3},
        "sampling": {"group_size": 3, "max_tokens": 20},
        "plan": {"tasks": 3, "templates": 2, "wave": 3},
        "generator": {"name": "openai_compatible", "settings": {"base_url": url, "retries": 0}},
        "trainer": None,
        "evolution": {"children": 0, "mutations": []},
        "placement": {"ray": "off", "storage": "memory", "home": str(folder / "home")},
    }
    path = folder / "endpoint.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.mark.process
def test_a_run_makes_data_without_a_trainer(tmp_path: Path) -> None:
    def answer(body: Body) -> Any:
        a, b = re.findall(r"(\d+) \+ (\d+)", body["messages"][-1]["content"])[-1]
        return [choice(f"Answer: {int(a) + int(b) + index % 2}") for index in range(body.get("n", 1))]

    with server(answer) as (url, requests):
        done = CliRunner().invoke(app, ["run", "--config", str(config(tmp_path, url)), "--json"])
    assert done.exit_code == 0, done.output
    assert {body["model"] for body in requests} == {"theirs"}
    assert len([body for body in requests if body.get("n") == 3]) == 12, "two steps of three tasks and two templates"


def test_training_on_an_endpoint_is_refused_before_a_run_begins(tmp_path: Path) -> None:
    path = config(tmp_path, "http://127.0.0.1:9/v1", trainer={"name": "mlx_lora"})
    done = CliRunner().invoke(app, ["run", "--config", str(path)])
    assert done.exit_code != 0
    said = " ".join(done.output.split())
    assert "trainer: mlx_lora needs the sampler's token ids and log-probabilities" in said
    assert "trainer: null" in said and "Traceback" not in said


def test_an_endpoint_that_is_not_there_is_missed_before_a_run_begins(tmp_path: Path) -> None:
    path = config(tmp_path, "http://127.0.0.1:9/v1")
    done = CliRunner().invoke(app, ["run", "--config", str(path)])
    assert done.exit_code != 0
    said = " ".join(done.output.split())
    assert "http://127.0.0.1:9/v1/models" in said and "generator.settings.base_url" in said
    assert not (tmp_path / "home" / "postgres").exists() and "Traceback" not in said


def test_doctor_looks_at_the_endpoint_that_rollouts_come_from(tmp_path: Path) -> None:
    path = config(tmp_path, "http://127.0.0.1:9/v1")
    done = CliRunner().invoke(app, ["doctor", "--config", str(path), "--json"])
    checks = {one["name"]: one for one in json.loads(done.stdout)}
    assert not checks["generator"]["ok"] and "generator.settings.base_url" in checks["generator"]["fix"]
    assert checks["endpoint"]["ok"]
