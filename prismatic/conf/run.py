"""One configuration per script: what `--help` shows is written here, on the right of each field."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional, Union

import prismatic.conf.datasets  # noqa: F401  registers the ids of --dataset.type
import prismatic.conf.presets  # noqa: F401  registers the ids of --model.type
from prismatic.conf.data import DatasetConfig
from prismatic.conf.features import cache_folder, check_feature_cache
from prismatic.conf.models import DEFAULT_MODEL_ID, STAGES, ModelConfig
from prismatic.registry import unknown_id_message

MoreDatasets = Union[list[str], dict[str, DatasetConfig]]  # noqa: UP007  draccus decodes typing.Union, not X | Y
TRACKERS = ("jsonl", "wandb")
TOKEN_GIVEN = (
    "--hf_token takes the file that holds the token, or the name of an environment variable, never the token itself: "
    "it would stand in the process list and in config.yaml"
)


def looks_like_token(text: str) -> bool:
    """Whether a text is a hub token itself, and no file or variable that is named like one."""
    return len(text) > 16 and text.startswith(("hf_", "api_")) and not Path(text).is_file() and text not in os.environ


@dataclass
class PretrainConfig:
    """Train a video-language model.

    Example: torchrun --standalone --nproc-per-node 1 scripts/pretrain.py --model.type tiny-video \
    --dataset.type moving-shapes --val_dataset.type moving-shapes-val --stage full-finetune
    """

    model: ModelConfig = field(default_factory=ModelConfig.get_choice_class(DEFAULT_MODEL_ID))
    dataset: DatasetConfig = field(default_factory=DatasetConfig.get_choice_class("webvid"))
    val_dataset: Optional[DatasetConfig] = None  # noqa: UP045  Validation data; none: no validation
    val_datasets: MoreDatasets = field(default_factory=list)  # More of it: '["ID"]', or '{"NAME": {"type": "ID"}}'

    stage: str = "finetune"  # align: projector; finetune: projector and LLM; full-finetune: all three
    pretrained_checkpoint: Path | None = None  # Checkpoint of an align run whose projector a finetune run starts from
    run_id: str | None = None  # Name of the run folder; default DATASET+MODEL+stage-STAGE+xSEED
    run_root_dir: Path = Path("runs")  # Run folders are made here
    seed: int = 7  # Initial weights, data order, frame sampling
    resume: str = "auto"  # auto: go on from the newest checkpoint if there is one; never; or a checkpoint folder
    checkpoint_interval: int | None = None  # Also save every this many optimizer steps (always at the end of an epoch)
    checkpoint_minutes: float | None = None  # Also save every this many minutes
    checkpoint_async: bool = True  # Write checkpoints beside the training, from a copy in host memory
    keep_checkpoints: int = 2  # Resumable checkpoints kept in the run folder, newest first
    keep_best: int = 1  # Kept beside those: the best by best_metric; 0: none
    on_save_error: str = "continue"  # A save that fails (full disk): continue and try again at the next, or stop
    validation_interval: int | None = None  # Also validate every this many steps (always at the end of an epoch)
    eval_task: str | None = None  # At each validation also answer some rows of it: caption, choice, open; none: no
    eval_examples: int = 32  # Rows of each validation set that are answered, the same ones each time
    eval_interval: int | None = None  # Answer every this many steps instead of at each validation
    eval_max_new_tokens: int = 64  # Longest of these answers in tokens
    best_metric: str = "validation_loss"  # What makes a checkpoint the best: the loss, or a score of eval_task
    on_nan: Literal["stop", "skip"] = "stop"  # A step whose loss or gradient is not finite: stop, or leave it out
    max_nan_steps: int = 3  # With on_nan skip: stop after so many of such steps in a row
    max_gradient: float | None = None  # Treat a step with a larger gradient norm as one that is not finite
    profile: tuple[int, ...] = ()  # Write a PyTorch trace of these steps, first and last: '[10,12]'
    peak_tflops: float | None = None  # Of one device, for MFU; default: by a table; a CPU's is measured
    device: str = "auto"  # auto: a GPU where there is one; cpu; cuda
    context_parallel_size: int = 1  # Processes that share each batch, for samples longer than one GPU holds
    device_memory: float | None = None  # GiB of a device to plan for; default: what the device here has
    longest_batch_first: Literal["auto", "always", "never"] = "auto"  # Try it before step 1; auto: on a GPU
    dry_run: bool = False  # Print the resolved configuration, sizes and tokens per example, then leave

    hf_token: str = ".hf_token"  # Token for gated models: a file, or the name of an environment variable
    plugins: str = ""  # Your own modules to import before ids are resolved, comma-separated
    trackers: tuple[str, ...] = ("jsonl", "wandb")  # Where metrics go, in brackets: '["jsonl","wandb"]'
    wandb_project: str = "prismatic"  # Weights & Biases project
    wandb_entity: str | None = None  # Weights & Biases user or team; none: your default

    def resolved_run_id(self) -> str:
        """The run folder's name: `run_id`, or made of the ids (llava-v15 runs carry no dataset prefix)."""
        if self.run_id:
            return self.run_id
        name = f"{self.model.model_id}+stage-{self.stage}+x{self.seed}"
        return name if self.dataset.dataset_id == "llava-v15" else f"{self.dataset.dataset_id}+{name}"

    def _validate_context(self, world_size: int) -> None:
        size, flag = self.context_parallel_size, "--context_parallel_size"
        if size < 1 or world_size % size:
            raise ValueError(f"{flag} must divide the number of processes, {world_size}, got {size}")
        if size == 1:
            return
        if self.model.model_path is not None:
            raise ValueError(f"{flag} {size} is for composed models, not for --model.type hf-vlm; leave it out")
        if not all(data.packing for data in (self.dataset, *self.validation_datasets().values())):
            raise ValueError(f"{flag} {size} shares batches of one row; pass --dataset.packing true (val_dataset too)")

    def validate(self, world_size: int = 1) -> None:
        """Raises ValueError naming the flag when a value cannot work. The script calls it before anything is built."""
        if self.stage not in STAGES:
            raise ValueError(f"--stage must be one of {', '.join(STAGES)}, got '{self.stage}'")
        if not self.trackers or any(t not in TRACKERS for t in self.trackers):
            raise ValueError(
                f"--trackers takes a list in brackets of {', '.join(TRACKERS)}, for example --trackers '[\"jsonl\"]'; "
                f"got {list(self.trackers)}"
            )
        if looks_like_token(self.hf_token):
            raise ValueError(TOKEN_GIVEN)
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device must be auto, cpu or cuda, got '{self.device}'")
        for name in ("checkpoint_interval", "validation_interval", "eval_interval"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1 step, got {value}")
        if self.device_memory is not None and not self.device_memory > 0:
            raise ValueError(f"--device_memory is GiB of a device, greater than 0, got {self.device_memory}")
        self._validate_saving()
        self._validate_telling()
        run_id = self.resolved_run_id()
        if "/" in run_id or run_id in (".", ".."):
            raise ValueError(f"--run_id is a folder name below --run_root_dir, not a path; got '{run_id}'")
        self._validate_context(world_size)
        self.model.validate(self.stage, world_size // self.context_parallel_size)
        self.dataset.validate()
        for dataset in self.validation_datasets().values():
            dataset.validate()
        check_feature_cache(self.stage, self.model, self.dataset, self.validation_datasets())

    def validation_datasets(self) -> dict[str, DatasetConfig]:
        """All validation data by name: `--val_dataset` under its id, then `--val_datasets`."""
        first = {self.val_dataset.dataset_id: self.val_dataset} if self.val_dataset is not None else {}
        more = self.val_datasets
        if isinstance(more, list):
            more = {name: DatasetConfig.get_choice_class(name)() for name in more}
        return {**first, **more}

    def _validate_validation(self) -> None:
        if isinstance(self.val_datasets, list):
            known = sorted(DatasetConfig.get_known_choices())
            for name in self.val_datasets:
                if name not in known:
                    raise ValueError(unknown_id_message("dataset", name, known, "--val_datasets"))
        taken = [] if self.val_dataset is None else [self.val_dataset.dataset_id]
        for name in self.val_datasets:
            if name in taken or not name or any(c in name for c in "(),/"):
                raise ValueError(
                    f"--val_datasets: '{name}' cannot be a name here; each set has one of its own, without brackets, "
                    "commas and slashes"
                )

    def _validate_telling(self) -> None:
        self._validate_validation()
        if self.eval_task is None and self.eval_interval is not None:
            raise ValueError("--eval_interval does nothing without --eval_task (caption, choice, ...)")
        if (self.eval_task or self.best_metric != "validation_loss") and not self.validation_datasets():
            flag = "--eval_task" if self.eval_task else "--best_metric"
            raise ValueError(f"{flag} needs validation data: pass --val_dataset.type ID")
        if self.best_metric != "validation_loss" and self.eval_task is None:
            raise ValueError(
                f"--best_metric {self.best_metric} is a score of answers: pass --eval_task caption or choice"
            )
        for name in ("eval_examples", "eval_max_new_tokens", "max_nan_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_gradient", "peak_tflops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be greater than 0, got {value}")
        steps = self.profile
        if steps and (len(steps) > 2 or steps[0] < 1 or steps[-1] < steps[0]):
            raise ValueError(f"--profile takes the first and the last step to trace, as '[10,12]'; got {list(steps)}")

    def _validate_saving(self) -> None:
        if self.keep_checkpoints < 1:
            raise ValueError(f"--keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
        if self.keep_best < 0:
            raise ValueError(f"--keep_best must be at least 0 checkpoints, got {self.keep_best}")
        if self.checkpoint_minutes is not None and not 0 < self.checkpoint_minutes < math.inf:
            raise ValueError(f"--checkpoint_minutes must be more than 0 minutes, got {self.checkpoint_minutes:g}")
        if self.on_save_error not in ("continue", "stop"):
            raise ValueError(f"--on_save_error must be continue or stop, got '{self.on_save_error}'")


@dataclass
class GenerateConfig:
    """Ask a trained model about an image or a video.

    Example: python scripts/generate.py --model_path runs/my-run --media clip.mp4 --prompt "What happens here?"
    Without --media an interactive prompt opens that takes paths and questions and keeps the conversation.
    """

    model_path: str = "prism-dinosiglip+7b"  # Run folder, checkpoint file, or model id
    media: str | None = None  # Image, video, or folder of frames; none: interactive
    prompt: str = "Describe what is happening in the video."  # The question
    system_prompt: str | None = None  # Replaces the template's system prompt
    num_frames: int | None = None  # Frames taken from a video; default: as trained
    sampler: str = "uniform"  # Which frames of a video are taken; `python -m prismatic list sampler`
    device: str = "auto"  # auto: a GPU where there is one; cpu; cuda
    hf_token: str = ".hf_token"  # Token for gated models: a file, or the name of an environment variable
    plugins: str = ""  # Your own modules to import before ids are resolved, comma-separated
    do_sample: bool = False  # Sample instead of taking the likeliest token
    temperature: float = 1.0  # Sampling temperature
    num_beams: int = 1  # Beam search with this many beams
    max_new_tokens: int = 512  # Longest answer in tokens
    min_length: int = 1  # Shortest answer in tokens

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"--num_frames must be at least 1, got {self.num_frames}")
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise ValueError("--max_new_tokens and --num_beams must be at least 1")
        if self.do_sample and not self.temperature > 0:
            raise ValueError(f"--temperature must be greater than 0 with --do_sample true, got {self.temperature}")


@dataclass
class EvaluateConfig:
    """Answer every row of a dataset and score the answers.

    Example: python scripts/evaluate.py --model_path runs/my-run --dataset.type moving-shapes-val --task caption \
    --output_dir runs/my-run/evaluation
    """

    model_path: str = ""  # Run folder, checkpoint file, or model id
    dataset: DatasetConfig = field(default_factory=DatasetConfig.get_choice_class("webvid"))
    task: str = "caption"  # How answers are made and scored; an unknown task lists those there are
    output_dir: Path = Path("evaluation")  # Gets metrics.json, predictions.jsonl; a run folder also its report.html
    num_frames: int | None = None  # Frames taken from each video; default: as trained
    limit: int | None = None  # Only the first so many rows
    batch_size: int = 16  # Rows answered at a time
    max_new_tokens: int = 64  # Longest answer in tokens
    num_beams: int = 1  # Beam search with this many beams
    seed: int = 7  # Seed of random frame samplers
    device: str = "auto"  # auto: a GPU where there is one; cpu; cuda
    hf_token: str = ".hf_token"  # Token for gated models: a file, or the name of an environment variable
    plugins: str = ""  # Your own modules to import before ids are resolved, comma-separated

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if not self.model_path:
            raise ValueError("--model_path is needed: a run folder, a checkpoint file, or a model id")
        for name in ("num_frames", "limit", "batch_size", "max_new_tokens", "num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        self.dataset.validate()
        if self.dataset.weave.enabled:
            raise ValueError(
                "--dataset.weave.videos_per_example weaves while training; rows to evaluate on are made once, with "
                "`python scripts/webvid.py weave`"
            )
        if self.dataset.feature_cache is not None:
            raise ValueError("--dataset.feature_cache serves training; evaluation encodes each clip once. Leave it out")


@dataclass
class PreprocessConfig:
    """Fetch or render a dataset; or, with --cache_features, encode a dataset's clips once, for all training to come.

    Examples: python scripts/preprocess.py --dataset_id moving-shapes --root_dir data
    python scripts/preprocess.py --cache_features features --model.type tiny-video --dataset.type moving-shapes
    (then train with the same --model, --dataset and --seed flags and --dataset.feature_cache features)
    """

    dataset_id: str = "moving-shapes"  # moving-shapes (rendered), llava-v1.5-instruct, llava-laion-cc-sbu-558k
    root_dir: Path = Path("data")  # The dataset becomes a folder in here
    seed: int = 7  # Seed of a rendered dataset; with --cache_features the --seed of the training
    num_workers: int = 2  # Processes that render or convert

    cache_features: str | None = None  # Folder for the features of --dataset.type; true: --dataset.feature_cache
    model: ModelConfig = field(default_factory=ModelConfig.get_choice_class(DEFAULT_MODEL_ID))  # With --cache_features
    dataset: DatasetConfig = field(default_factory=DatasetConfig.get_choice_class("webvid"))  # With --cache_features
    stage: str = "finetune"  # With --cache_features: align or finetune, whose annotation file names the clips
    device: str = "auto"  # With --cache_features: auto (a GPU where there is one), cpu, cuda
    hf_token: str = ".hf_token"  # Token for gated models: a file, or the name of an environment variable
    plugins: str = ""  # Your own modules to import before ids are resolved, comma-separated

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work, or would do nothing."""
        folder = cache_folder(self.cache_features, self.dataset)
        if folder is None:
            default = PreprocessConfig()
            for name in ("model", "dataset", "stage"):
                if getattr(self, name) != getattr(default, name):
                    raise ValueError(f"--{name} goes with --cache_features FOLDER; --dataset_id names what is fetched")
            return
        if self.stage not in STAGES:
            raise ValueError(f"--stage must be one of {', '.join(STAGES)}, got '{self.stage}'")
        if looks_like_token(self.hf_token):
            raise ValueError(TOKEN_GIVEN)
        self.dataset.feature_cache = folder
        self.model.validate(self.stage, world_size=1)
        self.dataset.validate()
        check_feature_cache(self.stage, self.model, self.dataset)


@dataclass
class ExportConfig:
    """Take a trained model out: as a Transformers folder, or as a run folder of the older layout.

    Example: python scripts/export.py --model_path runs/my-run --format hf --output_dir exported/my-run
    """

    model_path: str = ""  # Run folder, checkpoint file, or model id
    format: str = "hf"  # hf: LLaVA's (or FastVLM's) class of Transformers; prismatic: config.json and a .pt file
    output_dir: Path = Path("exported")  # Folder to write; it must be new or empty
    verify: bool = True  # Load what was written and compare it with the model here; exit non-zero on a difference
    merge_lora: bool = False  # Add the LLM's LoRA adapters to its weights
    dtype: str = "float32"  # Of the weights: float32, bfloat16 or float16
    push_to_hub: str | None = None  # Upload the folder to this hub repository (owner/name), made private if new
    hf_token: str = ".hf_token"  # Hub token: a file, or the name of an environment variable
    plugins: str = ""  # Your own modules to import before ids are resolved, comma-separated

    def validate(self) -> None:
        """Raises ValueError naming the flag when a value cannot work."""
        if not self.model_path:
            raise ValueError("--model_path is missing: a run folder, a checkpoint file, or a model id")
        if self.format not in ("hf", "prismatic"):
            raise ValueError(f"--format must be hf or prismatic, got '{self.format}'")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype must be float32, bfloat16 or float16, got '{self.dtype}'")
