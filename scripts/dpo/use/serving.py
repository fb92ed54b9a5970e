"""A run's policy behind the API that OpenAI's clients speak: which server, on what, how to ask."""

import importlib.util
import json
import shlex
import socket
import sys
from pathlib import Path

import torch

from dpo.core.refusal import Refusal
from dpo.models import adapters
from dpo.use.export import record
from dpo.use.export.record import EXPORTS
from dpo.use.run import Used

HOST = "127.0.0.1"  # nobody else's: neither server asks who comes


def served(run: Used) -> Path:
    """The folder to serve: the policy's, or of an adapter its newest merged export, quantised only
    where there is no other, which is said.

    Raises:
        Refusal: it is an adapter, and not merged.
    """
    folder = Path(run.policy.path)
    if not adapters.config_of(str(folder)):
        return folder
    # Not what a run that was trained here before has left.
    merged = [path for path in run.folder.glob(f"{EXPORTS}/merged-*") if record.run_of(path)]
    bits = {path: record.read(path)["bits"] for path in merged}
    merged.sort(key=lambda path: (not bits[path], path.stat().st_mtime))
    if not merged:
        raise Refusal(
            f"{run.folder} holds an adapter, which is served merged with its base: "
            f"make export RUN={shlex.quote(str(run.folder))} MERGE=1, then the same again"
        )
    if few := bits[merged[-1]]:
        print(
            f"{merged[-1]} has {few} bits a weight: MERGE=1 alone exports the policy's own weights"
        )
    return merged[-1]


def check_port(port: int) -> None:
    """Raises Refusal if something listens there, or nobody may."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((HOST, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise Refusal(f"port {port} cannot be had ({why}): give another PORT=") from error


def command(folder: Path, port: int, trusted: bool) -> list[str]:
    """The server's own command: vLLM's where it and a GPU are there, else that of transformers.

    Raises:
        Refusal: what that needs is not installed.
    """
    at = ["--host", HOST, "--port", str(port)]
    code = ["--trust-remote-code"] * trusted
    programs = Path(sys.executable).parent
    if importlib.util.find_spec("vllm") and torch.cuda.is_available():
        return [str(programs / "vllm"), "serve", str(folder), *at, *code]
    if not importlib.util.find_spec("fastapi"):
        raise Refusal(
            "transformers serve needs fastapi, which is not installed: "
            f"{sys.executable} -m pip install --requirement requirements-serve.txt"
        )
    return [str(programs / "transformers"), "serve", str(folder), *at, *code]


def tried(folder: Path, port: int, conversational: bool) -> str:
    """How to ask it: a line for a shell, and three of Python. In plain text, past the chat
    template, where it was not trained on messages."""
    url, path, answer = f"http://{HOST}:{port}/v1", "completions", "text"
    asked: dict[str, object] = {"model": str(folder), "prompt": "Hello!"}
    if conversational:
        asked = {"model": str(folder), "messages": [{"role": "user", "content": "Hello!"}]}
        path, answer = "chat/completions", "message.content"
    body = json.dumps({**asked, "max_tokens": 100})
    curl = f"curl {url}/{path} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    given = ", ".join(f"{key}={json.dumps(value)}" for key, value in asked.items())
    python = [
        f'import openai; client = openai.OpenAI(base_url="{url}", api_key="none")',
        f"said = client.{path.replace('/', '.')}.create({given})",
        f"print(said.choices[0].{answer})",
    ]
    return "\n".join([curl, "", *python])
