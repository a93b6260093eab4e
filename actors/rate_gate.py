"""One actor that every call to the endpoint passes: the cluster-wide spend so far. Waiting calls cost it nothing."""

from grpo_ray import llm
from grpo_ray.recipe import OracleSpec


class RateGate(llm.RateGate):
    """llm's gate, named for Ray's lists."""

    def __init__(self, spec: OracleSpec) -> None:
        super().__init__(spec.max_usd, spec.usd_per_million)

    async def open(self) -> None:
        """A sign of life."""

    def __repr__(self) -> str:
        return "RateGate"
