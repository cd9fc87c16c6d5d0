#!/usr/bin/env bash
# The main job, from nothing to an answered question: sets up, renders moving-shapes, weaves it, trains tiny-video,
# evaluates it with all frames and with one, asks it about a held-out video, and writes a report.
#
#   ./run_pretrain.sh                                  # everything, on a GPU where there is one
#   ./run_pretrain.sh --seed 8                         # further flags go to scripts/pretrain.py
#   NGPU=4 ./run_pretrain.sh                           # on four GPUs
#
# A run that was interrupted goes on where it stopped when the same command is given again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

NGPU=${NGPU:-1}
DATA=${DATA:-data}

current="setting up"
PRISMATIC_ERROR_FILE="$(mktemp)"
export PRISMATIC_ERROR_FILE
finish() {
    local code=$?
    if [ "$code" -ne 0 ]; then
        printf '\nrun_pretrain.sh: stopped while %s (exit code %s)\n' "$current" "$code" >&2
        # torchrun reports at length on a process that failed; the reason is said again below it.
        if [ -s "$PRISMATIC_ERROR_FILE" ]; then cat "$PRISMATIC_ERROR_FILE" >&2; fi
    fi
    rm -f "$PRISMATIC_ERROR_FILE"
}
trap finish EXIT
step() {
    current="$1"
    printf '\n== [%s] %s\n' "$(date +%H:%M:%S)" "$1"
}
# The value that a flag has among the arguments, or a default.
flag() {
    local name="$1" value="$2"
    shift 2
    while [ "$#" -gt 0 ]; do
        case "$1" in
            "$name") value="${2:-}" ;;
            "$name="*) value="${1#*=}" ;;
        esac
        shift
    done
    printf '%s' "$value"
}

# shellcheck source=scripts/environment.sh
. scripts/environment.sh

# Other flags are another run: their checksum is part of its name.
run_id="moving-shapes+tiny-video"
if [ "$#" -gt 0 ]; then run_id="$run_id+$(printf '%s ' "$@" | cksum | cut -d ' ' -f 1)"; fi
run_id=$(flag --run_id "$run_id" "$@")
run_dir="$(flag --run_root_dir runs "$@")/$run_id"

step "rendering moving-shapes"
python scripts/preprocess.py --dataset_id moving-shapes --root_dir "$DATA"

step "clustering and weaving"
shapes="$DATA/moving-shapes"
python scripts/webvid.py catalog --videos "$shapes/videos" --captions "$shapes/train.csv" --output "$shapes/train.parquet"
python scripts/webvid.py cluster --catalog "$shapes/train.parquet" --videos_per_cluster 2 --method random \
    --output "$shapes/clusters.json"
python scripts/webvid.py weave --clusters "$shapes/clusters.json" --catalog "$shapes/train.parquet" --total_frames 8 \
    --form joined --media_root "$shapes" --output "$shapes/woven.json"
# Every clip alone, and half of the pairs: a model that only ever saw pairs does not know what to say of one clip.
cat > "$shapes/mixture.yaml" <<'YAML'
datasets:
  - json_path: train.json
    sampling_strategy: all
  - json_path: woven.json
    sampling_strategy: random:50%
YAML

step "training ($NGPU process(es))"
torchrun --standalone --nproc-per-node "$NGPU" scripts/pretrain.py --model.type tiny-video --stage full-finetune \
    --dataset.type moving-shapes --val_dataset.type moving-shapes-val --dataset.dataset_root_dir "$DATA" \
    --dataset.finetune_stage_components '["moving-shapes/mixture.yaml", "moving-shapes"]' \
    --val_dataset.dataset_root_dir "$DATA" --trackers '["jsonl"]' --run_id "$run_id" "$@"
# A run that SIGTERM stopped has saved and ends with 0; it is not there to be evaluated yet.
newest="$(find "$run_dir/checkpoints" -maxdepth 1 -name 'step-*' -type d | sort | tail -n 1)"
if ! grep -q '"complete": true' "$newest/state.json"; then
    printf 'Training was stopped before its end: the same command goes on.\n' >&2
    exit 143
fi

step "evaluating on held-out videos"
python scripts/evaluate.py --model_path "$run_dir" --dataset.type moving-shapes-val --dataset.dataset_root_dir "$DATA" \
    --task caption --output_dir "$run_dir/evaluation"

step "evaluating with one frame per video"
python scripts/evaluate.py --model_path "$run_dir" --dataset.type moving-shapes-val --dataset.dataset_root_dir "$DATA" \
    --task caption --num_frames 1 --output_dir "$run_dir/evaluation-one-frame"

step "asking about a held-out video"
# The row in the middle of the held-out videos: its file, its question and the true answer, a line each.
row='import json, sys
rows = json.load(open(sys.argv[1]))
row = rows[len(rows) // 2]
question, truth = (turn["value"].replace("<video>", "").strip() for turn in row["conversations"])
print(row["videos"][0], question, truth, sep="\n")'
{ read -r video; read -r question; read -r truth; } < <(python -c "$row" "$shapes/val.json")
answer="$(python scripts/generate.py --model_path "$run_dir" --media "$shapes/$video" --prompt "$question")"
printf 'video:    %s\nquestion: %s\nanswer:   %s\ntruth:    %s\n' "$shapes/$video" "$question" "$answer" "$truth"

current="finishing"
printf '\nThe report with curves, figures and held-out clips: %s\n' "$run_dir/report.html"
