"""make data shows what the model will see."""

import json
import re

import pytest

from support.commands import make
from support.launched import made
from support.tiny import pair


@pytest.fixture
def data(tmp_path):
    """Two pairs of which one is cut, and a bad one that no markup may hide in."""
    rows = [
        pair("a day", "Good. " * 30, "Bad."),
        pair("b", "Good [bold]enough[/bold] <script>alert(1)</script> \x1b[31mred.", "Bad, or so."),
        pair("c", "", "Bad."),
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_make_data_shows_what_the_model_will_see(tmp_path, data):
    flags = f"--dataset_name={data} --eval_strategy=no --max_length=80 --quarantine_limit=0.5"
    result = make("data", f"ARGS={flags} --output_dir={tmp_path}/run")
    assert result.returncode == 0, result.stderr[-3000:]
    said = result.stdout
    assert "2 pairs of 3 rows" in said and "1 set aside as empty" in said
    chosen = next(line for line in said.splitlines() if line.startswith("│ chosen"))
    assert "50.0%" in chosen  # one of the two is cut
    assert "chosen is the longer one in 100.0% of the pairs" in said
    assert "<|im_start|>user\nHow was a day?<|im_end|>\n<|im_start|>assistant" in said
    assert "[bold]enough[/bold]" in said and "\x1b" not in said and r"\x1b[31mred" in said
    assert said.splitlines()[-1] == "Next: make train RECIPE=smollm2-sentiment"
    page = (tmp_path / "run/data.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in re.sub("</?[ib][^>]*>", "", page)
    assert "Content-Security-Policy" in page.partition("<style>")[0]
    assert 'class="special"' in page and 'class="cut"' in page and "viewport" in page
    (line,) = (tmp_path / "run/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 3


def test_make_data_refuses_what_a_run_would_refuse(tmp_path, data):
    flags = f"--dataset_name={data} --eval_strategy=no --output_dir={tmp_path}/run"
    result = made("data", f"ARGS={flags}")
    assert result.returncode != 0
    assert "1 of 3 train rows are set aside (33.3%)" in result.stderr
    assert (tmp_path / "run/data.html").is_file()
