#!/bin/bash
# Accuracy of an SVM on every layer, on TrashNet: SqueezeNet and MobileNetV2 from weights files, AlexNet from scratch.
#
#     bench/layers.sh PHOTOS WEIGHTS OUT
#
# PHOTOS is trashnet/ with train, val and test, WEIGHTS a folder with squeezenet1_1.pth and mobilenet_v2.pth. OUT gets
# NAME/sweep-layers/ with table.csv and sweep.png of each network. Few epochs and small training crops: the depth of the
# curves is wanted, not the best accuracy.
set -euo pipefail
photos=$1 weights=$2 out=$3
sweep() {
    penult train "$photos" --out "$out/$1" --arch "$@" --sweep layers --svm linear --augment topdown --fit stretch \
        --schedule onecycle --device cpu
}
sweep squeezenet1_1 --weights "$weights/squeezenet1_1.pth" --freeze 2 --epochs 5 --train-crop 160 --lr-backbone 3e-4
sweep mobilenet_v2 --weights "$weights/mobilenet_v2.pth" --freeze 2 --epochs 4 --train-crop 128 --lr-backbone 7e-4 \
    --lr-head 2e-3 --lr-stage-decay 0.7
sweep alexnet --weights none --epochs 10 --lr-head 2e-4
