"""make export of a real run, which answers in plain transformers as it does here."""

import json
import subprocess
import sys

from dpo.evaluation.contestants import find
from dpo.models.sampling import prompt_token_ids, sample
from support.commands import make
from support.place import ROOT

# What anybody would do with the folder, without this repository.
ASK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
asked = [{"role": "user", "content": question}]
ids = tokenizer.apply_chat_template(
    asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
said = model.generate(**ids, do_sample=False, max_new_tokens=12)
print(json.dumps(said[0, ids["input_ids"].shape[1] :].tolist()))
"""


def test_what_is_exported_answers_as_the_run_does(swept, tmp_path):
    run, to, question = swept[0] / "beta=0.3", tmp_path / "released", "How was the soup?"
    result = make("export", f"RUN={run}", f"TO={to}")
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"Written: {to} (full, float32, " in result.stdout and "Next: " in result.stdout
    assert not [path for path in to.iterdir() if path.name.endswith((".bin", ".pt", ".pth"))]
    about = json.loads((to / "export.json").read_text())
    assert about["checked"]["nats"]["export_from_policy"]["token_max"] < 1e-5
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(to), question], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    policy = find(str(run))
    ids = prompt_token_ids(policy.tokenizer(), [{"role": "user", "content": question}])
    how = {"temperature": 0, "max_new_tokens": 12, "seed": 0}
    (said,) = sample(policy.load("cpu"), policy.tokenizer(), [ids], **how)
    drawn = json.loads(done.stdout)
    assert drawn[: len(said.token_ids)] == said.token_ids
    assert str(ROOT) not in (to / "config.json").read_text()
