"""make serve on a real run, asked as it says it can be."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import openai
import pytest

from dpo.evaluation.contestants import find
from dpo.models.sampling import prompt_token_ids, sample
from support.launched import free_port
from support.place import ROOT

PATIENCE = 300  # seconds


def test_a_client_of_openai_is_answered_as_the_run_answers(swept, tmp_path):
    pytest.importorskip("fastapi", reason="make serve installs it")
    run, port, log = swept[0] / "beta=0.1", free_port(), tmp_path / "log"
    old = [f"--old-file={sys.prefix}/{name}" for name in ("ready", "serve")]
    given = ["make", f"VENV={sys.prefix}", *old, "serve", f"RUN={run}", f"PORT={port}"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out:
        how = {"stdout": out, "stderr": out, "process_group": 0}
        process = subprocess.Popen(given, cwd=ROOT, env=environment, **how)
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        asked = [{"role": "user", "content": "How was the soup?"}]
        deadline, answer = time.monotonic() + PATIENCE, None
        while answer is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                answer = client.chat.completions.create(
                    model=str(run), messages=asked, max_tokens=8, temperature=0
                )
            except openai.APIConnectionError:
                time.sleep(0.5)
        policy = find(str(run))
        tokenizer, drawn = policy.tokenizer(), {"temperature": 0, "max_new_tokens": 8, "seed": 0}
        ids = prompt_token_ids(tokenizer, asked)
        (said,) = sample(policy.load("cpu"), tokenizer, [ids], **drawn)
        assert answer.choices[0].message.content.strip() == said.text
        told = log.read_text()
        python = re.search(r"^import openai; .*\n.*\nprint\(.*$", told, flags=re.MULTILINE)[0]
        done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr
        if shutil.which("curl"):
            curl = re.search("^curl .*$", told, flags=re.MULTILINE)[0]
            found = subprocess.run(curl, shell=True, capture_output=True, text=True).stdout
            assert '"content"' in found, found
    finally:
        os.killpg(process.pid, signal.SIGKILL)
