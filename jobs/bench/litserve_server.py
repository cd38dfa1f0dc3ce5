"""LitServe with transformers' pipeline, as its tutorial has it: an arm of `serve.py`, which starts
it. Workers of one thread form batches of up to eight."""

import os
from typing import Any

import litserve
import torch
from transformers import pipeline


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.pipeline = pipeline(
            "text-classification",
            model=os.environ["BENCH_MODEL"],
            top_k=None,
            dtype=torch.bfloat16,
            device="cpu",
        )

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[Any]:
        options = {"truncation": True, "max_length": 512, "batch_size": len(texts)}
        return list(self.pipeline(texts, **options))

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=8, batch_timeout=0.005, api_path="/v1/classify")
    num_workers = len(os.sched_getaffinity(0))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=num_workers, timeout=120)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        log_level="warning",
        generate_client_file=False,
    )
