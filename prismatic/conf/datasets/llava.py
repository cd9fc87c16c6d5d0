"""LLaVA v1.5 and its mixtures with LVIS-Instruct-4V and LRV-Instruct, as the Prismatic checkpoints were trained on."""

from __future__ import annotations

from prismatic.conf.data import register

_ALIGN = ("download/llava-laion-cc-sbu-558k/chat.json", "download/llava-laion-cc-sbu-558k/")
_INSTRUCT = "download/llava-v1.5-instruct"

for _dataset_id, _file in (
    ("llava-v15", "llava_v1_5_mix665k.json"),
    ("llava-multimodal", "llava_v1_5_stripped625k.json"),
    ("llava-lvis4v", "llava_v1_5_lvis4v_mix888k.json"),
    ("llava-lrv", "llava_v1_5_lrv_mix1008k.json"),
    ("llava-lvis4v-lrv", "llava_v1_5_lvis4v_lrv_mix1231k.json"),
    ("video-llava-v15", "llava_v1_5_mix665k_videos_2frame.json"),
):
    register(_dataset_id, _ALIGN, (f"{_INSTRUCT}/{_file}", _INSTRUCT))
