#!/bin/sh
# The whole benchmark on a tiny synthetic world: fine-tune a tiny BEiT-3 per task, evaluate it, print the leaderboard.
# Usage: sh tests/smoke.sh FOLDER [TASK ...]     (default: every task that is installed here)
set -eu

out=$1
shift
everything=yes
[ $# -gt 0 ] && everything=no
tasks=${*:-flickr30k coco-retrieval imagenet imagenet-linear vqav2 nlvr2 coco-caption nocaps coco-det ade20k-seg}
world=$out/world
started=$(date +%s)

say() {
    echo "[$(($(date +%s) - started)) s] $*"
}

# data TASK: the task's data root in the tiny world
data() {
    case $1 in
    flickr30k) echo "$world/flickr30k" ;;
    imagenet | imagenet-linear) echo "$world/imagenet" ;;
    nlvr2) echo "$world/nlvr2" ;;
    nocaps) echo "$world/nocaps" ;;
    ade20k-seg) echo "$world/ADEChallengeData2016" ;;
    *) echo "$world/coco" ;;
    esac
}

# start TASK: the checkpoint that fine-tuning starts from; the first task starts from random weights
start() {
    case $1 in
    flickr30k) ;;
    *) echo "$out/models/flickr30k/best.pth" ;;
    esac
}

say "writing the tiny world"
beit3-bench data tiny --out "$world"

for task in $tasks; do
    model=$task
    if [ "$task" = ade20k-seg ] && ! python -c 'import mmseg, mmcv.ops' 2>/dev/null; then
        # Leaves a "not installed" row with the line that installs it.
        beit3-bench run --task "$task" --checkpoint "$out/models/flickr30k/best.pth" --data-root "$(data "$task")" \
            --output "$out/runs/$task" --overwrite || true
        continue
    fi
    if [ "$task" = nocaps ]; then
        model=coco-caption # nocaps has no training split: it is evaluated with a COCO captioner
    else
        say "fine-tuning on $task"
        from=$(start "$task")
        # shellcheck disable=SC2086
        beit3-bench finetune --task "$task" --preset tiny --data-root "$(data "$task")" --tokenizer "$world/beit3.spm" \
            ${from:+--checkpoint "$from"} --output "$out/models/$task" --overwrite
    fi
    split=
    [ "$task" = vqav2 ] && split=minival # the published recipe trains on the rest of val
    say "evaluating $task"
    beit3-bench run --task "$task" --checkpoint "$out/models/$model/best.pth" --data-root "$(data "$task")" \
        --tokenizer "$world/beit3.spm" ${split:+--split "$split"} --output "$out/runs/$task" --overwrite
done

# Two more families, with random towers: their rows stand near chance, which is said beside them.
if [ "$everything" = yes ]; then
    say "other families"
    python tests/smoke_peers.py "$world" "$out/peers"
    beit3-bench run --task flickr30k,nlvr2 --checkpoint "flickr30k=$out/peers/vlmo/retrieval.pt" \
        --checkpoint "nlvr2=$out/peers/vlmo/nlvr2.pt" --data-root "flickr30k=$world/flickr30k" --data-root "nlvr2=$world/nlvr2" \
        --output "$out/runs/vlmo" --overwrite
    beit3-bench run --task flickr30k,imagenet --checkpoint "openclip:$out/peers/openclip" \
        --data-root "flickr30k=$world/flickr30k" --data-root "imagenet=$world/imagenet" --output "$out/runs/openclip" --overwrite
fi

say "leaderboard"
beit3-bench table --runs "$out/runs" --output "$out/leaderboard"
python tests/smoke_check.py "$out"
say "done"
