"""Code of a repository runs on request alone, and nothing goes to the network unasked."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prismatic.conf.models import ModelConfig
from tests.scripts.conftest import ROOT, script_environment

WATCH = """
import sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        sys.stderr.write(f"NETWORK {event} {args[1:]}\\n")
sys.addaudithook(hook)
"""


def test_nobody_trusts_by_default() -> None:
    for path in [*ROOT.glob("prismatic/**/*.py"), *ROOT.glob("scripts/*.py")]:
        assert not re.search(r"trust_remote_code\"?\]?\s*[=:]\s*True", path.read_text(encoding="utf-8")), path
    for name, preset in ModelConfig.get_known_choices().items():
        fields = {field.name: field.default for field in dataclasses.fields(preset)}
        assert fields.get("trust_remote_code", False) is False, name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local model whose configuration, tokenizer and processor want to bring code."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    model = tmp_path / "model"
    model.mkdir()
    for name in ("configuration_x", "modeling_x", "tokenization_x", "processing_x"):
        (model / f"{name}.py").write_text(code)
    auto = {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M", "AutoModel": "modeling_x.M"}
    (model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": auto, "architectures": ["M"]}))
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization_x.T", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (model / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "processing_x.P"}}))
    return model


@pytest.mark.parametrize("flags", [["--model.llm_backbone_id"], ["--model.type", "hf-vlm", "--model.model_path"]])
def test_a_folder_with_code_of_its_own_is_refused(folder: Path, flags: list[str], tmp_path: Path) -> None:
    rows = [{"id": "0", "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]}]
    (tmp_path / "rows.json").write_text(json.dumps(rows * 4))
    choice = [] if "--model.type" in flags else ["--model.type", "tiny-video"]
    args = [*choice, *flags, str(folder), "--dataset.type", "custom", "--dataset.dataset_root_dir", str(tmp_path)]
    args += ["--dataset.finetune_stage_components", '["rows.json", "."]', "--run_root_dir", str(tmp_path / "runs")]
    args += ["--model.finetune_global_batch_size", "4", "--model.finetune_per_device_batch_size", "2"]
    done = subprocess.run(
        [sys.executable, "-c", f"{WATCH}\nimport runpy\nsys.argv[0] = 'pretrain.py'\n"
         f"runpy.run_path({str(ROOT / 'scripts/pretrain.py')!r}, run_name='__main__')", *args, "--device", "cpu"],
        env=script_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert not (tmp_path / "ran").exists()
    assert not re.search(r"NETWORK .*(huggingface|443)", done.stderr), done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
