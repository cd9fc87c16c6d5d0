"""Taking a trained model out: `scripts/export.py` from start to end.

The folder is written under another name, checked, and renamed: what stands at `--output_dir` is whole and verified.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import torch

from prismatic.build import read_token
from prismatic.conf.run import ExportConfig
from prismatic.export import hf, native, prismatic
from prismatic.export.errors import ExportError
from prismatic.export.verify import verify
from prismatic.load import load_source
from prismatic.models.llm.lora import merge_adapter
from prismatic.models.native.vlm import NativeVLM

log = logging.getLogger(__name__)


def export(cfg: ExportConfig) -> str:
    """Export as the configuration says; returns what was done, for the user.

    Raises ValueError (ExportError where the model cannot be exported, or came out different), OSError.
    """
    cfg.validate()
    target = Path(os.path.abspath(cfg.output_dir.expanduser()))
    _check_target(target)
    token = read_token(cfg.hf_token)
    vlm, saved = load_source(cfg.model_path, token)
    if cfg.merge_lora:
        if vlm.llm_backbone.adapter is None:
            raise ExportError(f"--merge_lora true: {cfg.model_path} has no LoRA adapters; drop the flag")
        merge_adapter(vlm.llm_backbone)
        saved.config["model"].pop("lora", None)
    dtype = getattr(torch, cfg.dtype)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if isinstance(vlm, NativeVLM):
            native.check(vlm, cfg.format)
            native.write(vlm.to(dtype=dtype), partial)
            lines = [native.verify(vlm.to(dtype=torch.float32), partial)] if cfg.verify else []
        elif cfg.format == "hf":
            prepared = hf.prepare(vlm)
            vlm.to(dtype=dtype)
            hf.write(vlm, prepared, partial, name=saved.name, dtype=dtype)
            # In fp32, but of the numbers that were written.
            lines = [str(verify(vlm.to(dtype=torch.float32), prepared, partial))] if cfg.verify else []
        else:
            prismatic.write(vlm.to(dtype=dtype), saved.config, partial, modules=saved.modules)
            lines = [_verify_older(vlm, partial, dtype)] if cfg.verify else []
        _open_to_readers(partial)
        if target.exists():
            target.rmdir()  # empty, as was checked
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if cfg.push_to_hub:
        lines.append(push(target, cfg.push_to_hub, token))
    return "\n".join([*lines, f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}"])


def push(folder: Path, repo_id: str, token: str | None) -> str:
    """Upload a folder as a model repository, made private where it does not exist. Raises ExportError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise ExportError(
            f"--push_to_hub {repo_id}: {str(error).strip().splitlines()[0]}. The folder {folder} is whole; check the "
            "name, the network, and that --hf_token may write, then upload it"
        ) from error
    return f"uploaded to {url}"


def _check_target(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"--output_dir {target} is there already and not empty; give another")
    if target.exists() and not target.is_dir():
        raise ValueError(f"--output_dir {target} is a file; give a folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = target.with_name(f".{target.name}.probe")
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ValueError(f"--output_dir {target} cannot be written: {error}") from error


def _open_to_readers(folder: Path) -> None:
    # safetensors makes files that only their owner can read, whatever the umask says.
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)


def _verify_older(vlm: torch.nn.Module, folder: Path, dtype: torch.dtype) -> str:
    again, _ = load_source(folder)
    # Rounded too: what is not in the folder (a published backbone) comes in full precision.
    ours, theirs = vlm.state_dict(), again.to(dtype=dtype).state_dict()
    different = [key for key in ours.keys() | theirs.keys() if key not in theirs or not ours[key].equal(theirs[key])]
    if different:
        raise ExportError(f"the folder was read back different: {'; '.join(sorted(different)[:3])}")
    return f"verified: read back, all {len(ours)} tensors are equal"
