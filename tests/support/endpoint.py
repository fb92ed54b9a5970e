"""An OpenAI-compatible endpoint on the loopback, and judges for it."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dpo.evaluation.judges.judging import Comparison

MODEL = "fake-judge"
ARGUMENTS = {"model", "messages", "temperature", "max_tokens", "logprobs", "top_logprobs"}


KEY = "sk-a-key-that-nobody-may-see"


def comparisons(count: int) -> list[Comparison]:
    """The policy's answer is the longer one in even places."""
    short, long = "Yes.", "Yes, and here is why."
    pairs = [(long, short) if i % 2 == 0 else (short, long) for i in range(count)]
    return [Comparison(user(f"Question {i}?"), *pair) for i, pair in enumerate(pairs)]


def parts(text: str) -> dict[str, str]:
    """What stands under each heading, as a judge that heeds the mark reads it."""
    mark = re.search(r"begins with the mark (\w+)", text)[1]
    found = re.split(rf"^{mark} (.*)$", text, flags=re.MULTILINE)[1:]
    return {heading: part.strip() for heading, part in zip(found[::2], found[1::2], strict=True)}


def longer(text: str) -> str:
    """A judge that prefers the longer answer, and says yes to anything else."""
    if "the mark" not in text:
        return "Yes."
    a, b = (len(parts(text)[f"answer {name}"]) for name in "AB")
    return f"One is longer.\nVerdict: {'A' if a > b else 'B'}"


def completion(said: str) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": said}}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [choice | {"finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def weighed(said: str, top: dict[str, float]) -> dict:
    """A completion of one token with the log-probabilities of the likeliest ones."""
    each = [{"token": token, "logprob": logp, "bytes": None} for token, logp in top.items()]
    content = [{"token": said, "logprob": top.get(said, -9.0), "bytes": None, "top_logprobs": each}]
    answer = completion(said)
    answer["choices"][0]["logprobs"] = {"content": content, "refusal": None}
    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, body: bytes, status: int = 200, **headers: str):
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        assert self.path == "/v1/models"
        models = [{"id": MODEL, "object": "model", "created": 0, "owned_by": "us"}]
        self.reply(json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fake, text = self.server, asked["messages"][-1]["content"]
        assert self.path == "/v1/chat/completions" and {*asked} <= ARGUMENTS
        assert {name: asked.get(name) for name in fake.how} == fake.how
        fake.keys.add(self.headers["authorization"])
        with fake.one_by_one:
            fake.asked.append(text)
            answer = fake.say(text)
        if isinstance(answer, dict):
            assert asked["logprobs"]
            self.reply(json.dumps(answer).encode())
        elif isinstance(answer, str):
            self.reply(json.dumps(completion(answer)).encode())
        else:
            answer(self)


class Fake(ThreadingHTTPServer):
    """An OpenAI-compatible endpoint on the loopback. `say` makes of what is asked what the judge
    says, or what is done to the connection instead. `how` it must be asked."""

    daemon_threads = True

    def __init__(self, say, how):
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.asked, self.keys = say, [], set()
        self.how = {"temperature": 0} if how is None else how
        self.one_by_one = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *args):
        pass  # the client went away, as some tests have it do


@contextmanager
def serving(say, how=None):
    with Fake(say, how) as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield fake
        finally:
            fake.shutdown()
            thread.join()


def status(code: int, body: str = '{"error": {"message": "no"}}', **headers: str):
    return lambda handler: handler.reply(body.encode(), code, **headers)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def lines(kept: Path) -> list[dict]:
    return [json.loads(line) for line in kept.read_text().splitlines()]
