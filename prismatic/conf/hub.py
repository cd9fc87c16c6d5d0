"""Published checkpoints that `prismatic.load(id)` fetches: which repository and folder, and their names in the papers.

The TRI-ML rows are the checkpoints of the Prismatic paper, the RylanSchaeffer rows those that VideoWeave starts from.
Configuration and weights come from the same folder, so an id can never stand for another id's model.
"""

from __future__ import annotations

from dataclasses import dataclass

from prismatic.registry import Registry

TRI_ML = "TRI-ML/prismatic-vlms"
RYLAN = "RylanSchaeffer/prismatic-vlms"


@dataclass(frozen=True)
class HubModel:
    """A published run folder: `folder` of `repo_id` holds config.json and checkpoints/latest-checkpoint.pt."""

    model_id: str
    repo_id: str
    folder: str
    names: tuple[str, ...]


HUB_MODELS: Registry[HubModel] = Registry("published model")

_TRI_ML_ROWS: dict[str, tuple[str, ...]] = {
    "reproduction-llava-v15+7b": ("LLaVa v1.5 7B (Reproduction)",),
    "reproduction-llava-v15+13b": ("LLaVa v1.5 13B (Reproduction)",),
    "one-stage+7b": (
        "One-Stage 7B",
        "Single-Stage 7B",
        "Frozen ViT (Single-Stage)",
        "CLIP ViT-L 336px (Letterbox)",
        "CLIP ViT-L 336px",
        "Vicuña v1.5 7B",
        "1 Epoch",
        "Base",
    ),
    "one-stage+13b": ("One-Stage 13B", "Single-Stage 13B", "Vicuña v1.5 13B"),
    "full-ft-multi-stage+7b": ("Finetune ViT (Multi-Stage)",),
    "full-ft-one-stage+7b": ("Finetune ViT (Single-Stage)",),
    "in1k-224px+7b": ("IN1K ViT-L 224px",),
    "dinov2-224px+7b": ("DINOv2 ViT-L 224px",),
    "clip-224px+7b": ("CLIP ViT-L 224px",),
    "siglip-224px+7b": ("SigLIP ViT-SO 224px",),
    "clip-336px-resize-crop+7b": ("CLIP ViT-L 336px (Resize Crop)",),
    "clip-336px-resize-naive+7b": ("CLIP ViT-L 336px (Naive Resize)", "CLIP 336px (Naive Resize)"),
    "siglip-384px-letterbox+7b": ("SigLIP ViT-SO 384px (Letterbox)", "SigLIP ViT-SO 384px"),
    "siglip-384px-resize-crop+7b": ("SigLIP ViT-SO 384px (Resize Crop)",),
    "siglip-384px-resize-naive+7b": ("SigLIP ViT-SO 384px (Naive Resize)", "SigLIP 384px (Naive Resize)"),
    "dinoclip-336px-letterbox+7b": ("DINOv2 + CLIP 336px (Letterbox)",),
    "dinoclip-336px-resize-naive+7b": ("DINOv2 + CLIP 336px (Naive Resize)",),
    "dinosiglip-384px-letterbox+7b": ("DINOv2 + SigLIP 384px (Letterbox)",),
    "dinosiglip-384px-resize-naive+7b": ("DINOv2 + SigLIP 384px (Naive Resize)",),
    "llama2+7b": ("Llama-2 7B",),
    "llama2+13b": ("Llama-2 13B",),
    "llama2-chat+7b": ("Llama-2 Chat 7B",),
    "llama2-chat+13b": ("Llama-2 Chat 13B",),
    "mistral-v0.1+7b": ("Mistral v0.1 7B",),
    "mistral-instruct-v0.1+7b": ("Mistral Instruct v0.1 7B",),
    "phi-2+3b": ("Phi-2 3B",),
    "vicuna-no-cotraining+7b": ("Vicuña v1.5 7B (No Co-training)",),
    "llama2-no-cotraining+7b": ("Llama-2 7B (No Co-training)",),
    "train-1.25-epochs+7b": ("1.25 Epochs",),
    "train-1.5-epochs+7b": ("1.5 Epochs",),
    "train-2-epochs+7b": ("2 Epochs",),
    "train-3-epochs+7b": ("3 Epochs",),
    "llava-lvis4v+7b": ("Base + LVIS-4V",),
    "llava-lrv+7b": ("Base + LRV",),
    "llava-lvis4v-lrv+7b": ("Base + LVIS-4V + LRV",),
    "prism-clip-controlled+7b": ("Prism-CLIP 7B (Controlled)",),
    "prism-clip-controlled+13b": ("Prism-CLIP 13B (Controlled)",),
    "prism-clip+7b": ("Prism-CLIP 7B",),
    "prism-clip+13b": ("Prism-CLIP 13B",),
    "prism-siglip-controlled+7b": ("Prism-SigLIP 7B (Controlled)",),
    "prism-siglip-controlled+13b": ("Prism-SigLIP 13B (Controlled)",),
    "prism-siglip+7b": ("Prism-SigLIP 7B",),
    "prism-siglip+13b": ("Prism-SigLIP 13B",),
    "prism-dinosiglip-controlled+7b": ("Prism-DINOSigLIP 7B (Controlled)", "Prism 7B (Controlled)"),
    "prism-dinosiglip-controlled+13b": ("Prism-DINOSigLIP 13B (Controlled)", "Prism 13B (Controlled)"),
    "prism-dinosiglip+7b": ("Prism-DINOSigLIP 7B",),
    "prism-dinosiglip+13b": ("Prism-DINOSigLIP 13B",),
    "prism-dinosiglip-224px-controlled+7b": ("Prism-DINOSigLIP 224px 7B (Controlled)",),
    "prism-dinosiglip-224px+7b": ("Prism-DINOSigLIP 224px 7B",),
}

_RYLAN_LLMS = {
    "gemma-instruct+2b": "Gemma Instruct 2B",
    "gemma-instruct+8b": "Gemma Instruct 8B",
    "llama2-chat+7b": "Llama-2 Chat 7B",
    "llama3-instruct+8b": "Llama-3 Instruct 8B",
    "mistral-instruct-v0.2+7b": "Mistral Instruct v0.2 7B",
    "phi-instruct-3+4b": "Phi-3 Instruct 4B",
}
_RYLAN_VISION = {"clip": "CLIP", "siglip": "SigLIP", "dinosiglip": "DINOv2 + SigLIP"}

for _id, _names in _TRI_ML_ROWS.items():
    HUB_MODELS.add(_id, HubModel(_id, TRI_ML, _id, _names))
for _llm, _llm_name in _RYLAN_LLMS.items():
    for _vision, _vision_name in _RYLAN_VISION.items():
        _folder = f"{_llm}+{_vision}"
        HUB_MODELS.add(
            f"prism-{_folder}", HubModel(f"prism-{_folder}", RYLAN, _folder, (f"{_llm_name} ({_vision_name})",))
        )


def hub_model(name: str) -> HubModel:
    """The published model of an id or of a name used in the papers. Raises UnknownIdError (a ValueError)."""
    for _, model in HUB_MODELS.items():
        if name in model.names:
            return model
    return HUB_MODELS.get(name)
