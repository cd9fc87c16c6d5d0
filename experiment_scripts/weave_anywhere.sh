#!/usr/bin/env bash
# The question of VideoWeave at a size that runs anywhere: at a fixed frame budget T, how many clips L should share it?
# Trains tiny-video on moving-shapes once for each L, the same number of steps each, and evaluates on held-out clips.
#
#   experiment_scripts/weave_anywhere.sh                      # L = 1, 2, 4 at T = 16
#   LS="1 2" STEPS=300 experiment_scripts/weave_anywhere.sh --seed 8
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LS=${LS:-1 2 4}
T=${T:-16}
STEPS=${STEPS:-600}
DATA=${DATA:-data}
shapes="$DATA/moving-shapes"

# shellcheck source=scripts/environment.sh
. scripts/environment.sh

python scripts/preprocess.py --dataset_id moving-shapes --root_dir "$DATA"
python scripts/webvid.py catalog --videos "$shapes/videos" --captions "$shapes/train.csv" --output "$shapes/train.parquet"
for L in $LS; do
    python scripts/webvid.py cluster --catalog "$shapes/train.parquet" --videos_per_cluster "$L" --method random \
        --output "$shapes/clusters-L$L.json"
    python scripts/webvid.py weave --clusters "$shapes/clusters-L$L.json" --catalog "$shapes/train.parquet" \
        --total_frames "$T" --form joined --media_root "$shapes" --output "$shapes/woven-L$L.json"
    torchrun --standalone --nproc-per-node "${NGPU:-1}" scripts/pretrain.py --model.type tiny-video \
        --stage full-finetune --model.finetune_max_steps "$STEPS" --dataset.type custom \
        --dataset.dataset_id "moving-shapes-L$L" --dataset.dataset_root_dir "$DATA" \
        --dataset.finetune_stage_components "[\"moving-shapes/woven-L$L.json\", \"moving-shapes\"]" \
        --trackers '["jsonl"]' --run_id "weave-anywhere-L$L" "$@"
    python scripts/evaluate.py --model_path "runs/weave-anywhere-L$L" --dataset.type moving-shapes-val \
        --dataset.dataset_root_dir "$DATA" --task caption --output_dir "runs/weave-anywhere-L$L/evaluation"
done
for L in $LS; do
    python -c 'import json, sys; m = json.load(open(sys.argv[2])); print(f"L={sys.argv[1]}: attribute accuracy {m[\"attribute_accuracy\"]:.3f}")' \
        "$L" "runs/weave-anywhere-L$L/evaluation/metrics.json"
done
