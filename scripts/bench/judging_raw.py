"""The same requests as `judging_crew.py`, by AsyncOpenAI alone under a semaphore: what there is to be paid at the least."""

import argparse
import asyncio
import json
import time

from judging_crew import SIZE, group
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client

from grpo_ray.judges import rubric
from grpo_ray.llm.endpoint import schema_of
from grpo_ray.llm.shapes import response_format


async def asked(url: str, rows: int, concurrency: int) -> float:
    """Seconds for all rows."""
    rules = [{"name": n, "asks": a, "scale": rubric.ANCHORS[n]} for n, a in rubric.DIMENSIONS.items()]
    form = response_format("json_schema", "Verdicts", schema_of(rubric.Verdicts))
    limit = asyncio.Semaphore(concurrency)
    client = AsyncOpenAI(base_url=url, api_key="none", http_client=DefaultAsyncHttpx2Client(trust_env=False))

    async def one(question: str, text: str) -> None:
        said = [{"role": m.role, "content": m.content} for m in rubric.request(question, {"A1": text}, rules)]
        async with limit:
            answer = await client.chat.completions.create(model="stand-in", messages=said, max_tokens=2000, **form)  # pyright: ignore
        rubric.Verdicts.model_validate_json(answer.choices[0].message.content or "")

    work = [
        one(whole.prompt.task.question, rollout.text)
        for whole in map(group, range(rows // SIZE))
        for rollout in whole.rollouts
    ]
    began = time.perf_counter()
    await asyncio.gather(*work)
    return time.perf_counter() - began


def main() -> None:
    """Read the command line, ask, print."""
    asks = argparse.ArgumentParser(description=__doc__)
    asks.add_argument("--url", required=True)
    asks.add_argument("--rows", type=int, default=800)
    asks.add_argument("--concurrency", type=int, default=32)
    given = asks.parse_args()
    print(json.dumps({"seconds": asyncio.run(asked(given.url, given.rows, given.concurrency))}), flush=True)


if __name__ == "__main__":
    main()
