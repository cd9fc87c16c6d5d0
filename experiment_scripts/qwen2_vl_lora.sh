#!/usr/bin/env bash
# Fine-tunes Qwen2-VL 7B with LoRA on videos with questions and answers, then evaluates it with beam search.
#
#   DATA=data TRAIN=train.json VAL=val.json VIDEOS=videos experiment_scripts/qwen2_vl_lora.sh
#   NGPU=4 MODEL=path/to/qwen2-vl experiment_scripts/qwen2_vl_lora.sh --model.finetune_epochs 1
#
# TRAIN, VAL and VIDEOS are below DATA. The batch is 16 examples whatever NGPU is (4 x 4 accumulated on one).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=${MODEL:-Qwen/Qwen2-VL-7B-Instruct}
DATA=${DATA:-data}
TRAIN=${TRAIN:-train.json}
VAL=${VAL:-val.json}
VIDEOS=${VIDEOS:-videos}
RUNS=${RUNS:-runs}
run="$RUNS/qwen2-vl-lora"

torchrun --standalone --nnodes 1 --nproc-per-node "${NGPU:-1}" scripts/pretrain.py \
    --config_path experiment_scripts/qwen2_vl_lora.yaml --model.model_path "$MODEL" --run_root_dir "$RUNS" \
    --dataset.dataset_root_dir "$DATA" --dataset.finetune_stage_components "[\"$TRAIN\", \"$VIDEOS\"]" "$@"
python scripts/evaluate.py --model_path "$run" --dataset.type custom --dataset.dataset_root_dir "$DATA" \
    --dataset.finetune_stage_components "[\"$VAL\", \"$VIDEOS\"]" --task caption --num_beams 4 --max_new_tokens 128 \
    --output_dir "$run/evaluation"
