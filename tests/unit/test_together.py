"""Requests that go out together."""

import asyncio

import pytest

from grpo_ray.storage._together import Together


def test_what_comes_while_one_is_under_way_goes_out_with_the_next() -> None:
    async def main() -> list[list[int]]:
        sent: list[list[int]] = []
        open_ = asyncio.Event()

        async def work(items: list[int]) -> list[int]:
            sent.append(items)
            await open_.wait()
            return [10 * item for item in items]

        together = Together(work, most=3)
        first = asyncio.create_task(together(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [asyncio.create_task(together(item)) for item in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        open_.set()
        assert await asyncio.gather(first, *rest) == [0, 10, 20, 30, 40]
        assert await together(5) == 50
        return sent

    assert asyncio.run(main()) == [[0], [1, 2, 3], [4], [5]]


def test_one_that_fails_takes_nobody_with_it() -> None:
    async def main() -> None:
        async def work(items: list[int]) -> list[int]:
            if 2 in items:
                raise ValueError("no twos")
            return items

        together = Together(work)
        results = await asyncio.gather(*map(together, range(4)), return_exceptions=True)
        assert results[:2] == [0, 1] and results[3] == 3
        with pytest.raises(ValueError, match="no twos"):
            raise results[2]  # pyright: ignore

    asyncio.run(main())


def test_an_asker_that_goes_away_holds_nobody_up() -> None:
    async def main() -> None:
        async def work(items: list[int]) -> list[int]:
            await asyncio.sleep(0)
            return items

        together = Together(work)
        gone, stays = asyncio.create_task(together(1)), asyncio.create_task(together(2))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == 2

    asyncio.run(main())
