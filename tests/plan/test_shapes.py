"""Known sizes are those of the models that were published, and a model's own come first."""

import http.server
import json
import shutil
import threading
import time

import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.core.refusal import Refusal
from dpo.plan import shapes
from support.place import ROOT

SHAPES = json.loads(shapes.FILE.read_text())
QWEN = "Qwen/Qwen3-0.6B"


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["names"][0])
def test_a_known_shape_has_as_many_parameters_as_were_published(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape["config"]))
    assert sum(weight.numel() for weight in model.parameters()) == shape["parameters"]
    assert shape["source"]


def test_every_recipe_of_the_shelf_can_be_planned_without_the_hub():
    names = [name for shape in SHAPES for name in shape["names"]]
    assert len(names) == len({*names})
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        stated = yaml.safe_load(recipe.read_text())
        assert stated["model_name_or_path"] in shapes.known(), recipe


def test_without_the_hub_known_sizes_are_taken_and_said_to_be(no_hub):
    began = time.monotonic()
    config, note = shapes.config_of(QWEN, trust_remote_code=False, attn_implementation="sdpa")
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (1024, 28, 128)
    assert config._attn_implementation == "sdpa" and not hasattr(config, "trust_remote_code")
    assert note.startswith(f"sizes of {QWEN} as recipes/data/shapes.json has them: ")
    assert "it is not to be reached from here" in note and "Errno" not in note
    with pytest.raises(Refusal, match=r"cannot get the model 'org/unknown' from http://127.*HF_"):
        shapes.config_of("org/unknown")
    assert time.monotonic() - began < 10


def test_a_name_of_a_folder_is_not_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr(shapes, "check_reachable", None)
    monkeypatch.chdir("/")
    config, note = shapes.config_of("models/SmolLM2-135M-Instruct")
    assert config.hidden_size == 576 and "there is no model folder models/SmolLM2" in note
    with pytest.raises(Refusal, match=r"there is no model folder \./mine"):
        shapes.config_of("./mine")


def test_a_folder_is_taken_as_it_is_even_if_its_name_is_known(no_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AutoConfig.for_model("qwen3", num_hidden_layers=2).save_pretrained(QWEN)
    config, note = shapes.config_of(QWEN)
    assert config.num_hidden_layers == 2 and note is None
    (tmp_path / QWEN / "config.json").write_text("{")
    with pytest.raises(Refusal, match=r"config\.json cannot be read"):
        shapes.config_of(QWEN)
    shutil.rmtree(tmp_path / "Qwen")
    assert shapes.config_of(QWEN)[1]


class Gated(http.server.BaseHTTPRequestHandler):
    """A hub that is there, and gives nobody this model."""

    def do_HEAD(self):
        about = json.dumps({"id": "a/b", "siblings": []}).encode()
        shown = self.path.startswith("/api/models/")
        self.send_response(200 if shown else 403)
        if not shown:
            self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", str(len(about) * shown))
        self.end_headers()
        if shown:
            self.wfile.write(about)

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


def test_of_a_gated_model_known_sizes_are_taken_and_the_reason_told(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gated) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{hub.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        config, note = shapes.config_of("google/gemma-2-9b-it")
        assert config.num_hidden_layers == 42
        assert "gated" in note and "\n" not in note
        with pytest.raises(Refusal, match=r"org/unknown is not to be had .*gated.*hf auth login"):
            shapes.config_of("org/unknown")
        hub.shutdown()
