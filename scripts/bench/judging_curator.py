"""The same requests by bespokelabs-curator, in its own environment (it needs an older openai): run by `judging.py`.

Reads messages from a JSONL file; prints {"seconds": in the run, "rows": how many answers}.
"""

import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path


def main(requests: str, url: str, concurrency: int) -> None:
    """Ask for all rows."""
    litellm = find_spec("litellm")
    assert litellm is not None and litellm.origin is not None
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    os.environ |= {"OPENAI_API_KEY": "none", "TELEMETRY_ENABLED": "false", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    from bespokelabs import curator  # pyright: ignore
    from datasets import Dataset

    class Judge(curator.LLM):
        def prompt(self, input: dict[str, str]) -> list[dict[str, str]]:
            return json.loads(input["messages"])

        def parse(self, input: dict[str, str], response: str) -> dict[str, str]:
            return {"reply": str(response)}

    rows = Dataset.from_list([{"messages": line} for line in Path(requests).read_text("utf-8").splitlines()])
    limits = {"max_requests_per_minute": 10**6, "max_tokens_per_minute": 10**9}
    judge = Judge(
        model_name="stand-in",
        backend="openai",
        backend_params={"base_url": url, "max_concurrent_requests": concurrency, **limits},
    )
    began = time.perf_counter()
    answered = judge(rows)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "rows": len(getattr(answered, "dataset", answered))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
