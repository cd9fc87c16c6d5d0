#!/usr/bin/env bash
# The VideoWeave training matrix on WebVid: one row of the table below, by its number.
#
#   NGPU=2 experiment_scripts/videoweave.sh 005 --run_root_dir runs --dataset.on_error skip
#
# The weaves are expected in $DATA/dataset_splits (scripts/webvid.py weave writes them), the frames in $DATA/$FRAMES.
# All rows: CLIP ViT-L/14 at 336 px, Llama-2 7B, resize-naive, started from Prism-CLIP 7B, five epochs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXPERIMENT=${1:?which row? 000 002 003 004 005 006 007 011 012 013 014 015 016 017 018 019 020 021}
shift
DATA=${DATA:-data}
FRAMES=${FRAMES:-webvid}
vision=video-clip-vit-l-336px
llm=llama2-7b-pure
arch=no-align+gelu-mlp
init=prism-clip+7b
repo=TRI-ML/prismatic-vlms
frames=16
batch=1
rope=(--model.rope_scaling_factor 3.0)

# videos per example, and what the annotation file is called after
case "$EXPERIMENT" in
    000) train="45k_cluster_size=4" frames=4 batch=2 rope=() ;;
    002)
        train="45k_cluster_size=4" frames=4 batch=2 rope=()
        vision=video-dinosiglip-vit-so-384px llm=phi-3-instruct-4b
        init=phi-instruct-3+4b+dinosiglip repo=RylanSchaeffer/prismatic-vlms
        ;;
    003) train="45k_videos_per_cluster=16_total_input_frames=16" batch=2 ;;
    004) train="45k_videos_per_cluster=8_total_input_frames=16" batch=2 ;;
    005) train="45k_videos_per_cluster=4_total_input_frames=16" batch=2 ;;
    006) train="45k_videos_per_cluster=2_total_input_frames=16" batch=2 ;;
    007) train="45k_videos_per_cluster=1_total_input_frames=16" batch=2 ;;
    011) train="10k_videos_per_cluster=16_total_input_frames=16" ;;
    012) train="20k_videos_per_cluster=16_total_input_frames=16" ;;
    013) train="80k_videos_per_cluster=16_total_input_frames=16" ;;
    014) train="160k_videos_per_cluster=16_total_input_frames=16" ;;
    015) train="320k_videos_per_cluster=16_total_input_frames=16" ;;
    016) train="10k_videos_per_cluster=8_total_input_frames=16" ;;
    017) train="20k_videos_per_cluster=8_total_input_frames=16" ;;
    018) train="80k_videos_per_cluster=8_total_input_frames=16" ;;
    019) train="160k_videos_per_cluster=8_total_input_frames=16" ;;
    020) train="320k_videos_per_cluster=8_total_input_frames=16" ;;
    021) train="45k_videos_per_cluster=8_total_input_frames=16_random" ;;
    *)
        echo "error: there is no row $EXPERIMENT" >&2
        exit 2
        ;;
esac
val="5k_${train#*k_}"

torchrun --standalone --nnodes 1 --nproc-per-node "${NGPU:-$batch}" scripts/pretrain.py --model.type one-stage+7b \
    --model.vision_backbone_id "$vision" --model.llm_backbone_id "$llm" --model.arch_specifier "$arch" \
    --model.image_resize_strategy resize-naive --model.init_from_model "$init" --model.repo_id "$repo" \
    --model.num_frames "$frames" --model.finetune_epochs 5 --model.finetune_global_batch_size "$batch" \
    --model.finetune_per_device_batch_size 1 "${rope[@]}" \
    --dataset.type webvid --dataset.dataset_root_dir "$DATA" \
    --dataset.finetune_stage_components "[\"dataset_splits/webvid_train_$train.json\", \"$FRAMES\"]" \
    --val_dataset.type webvid_val --val_dataset.dataset_root_dir "$DATA" \
    --val_dataset.finetune_stage_components "[\"dataset_splits/webvid_val_$val.json\", \"$FRAMES\"]" \
    --run_id "videoweave-$EXPERIMENT" "$@"
