"""The MLX embedder keeps the Embedder protocol, and MLX backends keep to their threads."""

import asyncio
from threading import Thread

import numpy as np
import pytest

from grpo_ray.embedders.mlx import make_embedder
from grpo_ray.generators.mlx import make_generator
from grpo_ray.types import Message, Prompt, Sampling, Task, Wave

pytestmark = pytest.mark.mlx


def test_texts_become_unit_vectors_that_say_what_is_near(folder):
    embedder = make_embedder(model=folder, batch=2)
    texts = ["twelve plus twelve", "", "twelve plus twelves", "x" * 500, "QQ~!", "twelve plus twelve"]
    vectors = np.array(asyncio.run(embedder.embed(texts)))
    alone = np.array(asyncio.run(embedder.embed(texts[2:3])))
    assert asyncio.run(embedder.embed([])) == []
    embedder.close()
    assert vectors.shape == (6, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[5], atol=1e-5) and np.allclose(alone[0], vectors[2], atol=1e-5)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[4]


def test_generators_on_threads_of_their_own_agree(folder):
    prompt = Prompt("p", "t", Task("k", "hi"), (Message("user", "hi"),))
    wave = Wave("w", (prompt,), Sampling(group_size=4, max_tokens=8))
    found: list[list] = []

    def work() -> None:
        generator = make_generator(model=folder)
        found.append(list(generator.sample(wave, None, None)))
        generator.close()

    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    here = make_generator(model=folder)
    other = make_generator(model=folder)
    other.close()
    assert found == [list(here.sample(wave, None, None))] * 2
