"""The recipe's judges, asynchronous, on the head node: many groups in the air, with a store and an oracle of its own."""

import asyncio
from contextlib import AsyncExitStack

from grpo_ray.crew import open_oracle
from grpo_ray.judging import LocalJudges
from grpo_ray.launch import open_archive
from grpo_ray.llm.gate import Gate
from grpo_ray.recipe import Config
from grpo_ray.secrets_file import read_secrets
from grpo_ray.types import Evaluation, Group


class Judge:
    """Replies are recorded in the store before they are used, so a judge that died says the same words again."""

    def __init__(self, config: Config, run: str, base_url: str, gate: Gate) -> None:
        self._config, self._run, self._base_url, self._gate = config, run, base_url, gate
        self._held = AsyncExitStack()
        self._judges: LocalJudges | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Open the store and the oracle. Raises GrpoRayError where they can't be."""
        async with self._turn:
            if self._judges is not None:
                return
            read_secrets(self._config.placement.home)
            archive = await open_archive(self._config.placement)
            self._held.push_async_callback(archive.close)
            oracle = open_oracle(self._config, archive, self._run, self._base_url, self._gate)
            asked = await self._held.enter_async_context(oracle)
            self._judges = LocalJudges(self._config.recipe, asked, await archive.open(self._run))

    async def evaluate(self, step: int, group: Group) -> tuple[Evaluation, ...]:
        await self.open()
        assert self._judges is not None
        return await self._judges.evaluate(step, group)

    async def close(self) -> None:
        await self._held.aclose()

    def __repr__(self) -> str:
        return f"Judge[{', '.join(judge.name for judge in self._config.recipe.judges)}]"
