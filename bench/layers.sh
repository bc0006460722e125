#!/bin/bash
# Accuracy of an SVM on every layer, on TrashNet: SqueezeNet and MobileNetV2 from weights files, AlexNet from scratch.
#
#     bench/layers.sh PHOTOS WEIGHTS OUT
#
# PHOTOS is trashnet/ with train, val and test, WEIGHTS a folder with squeezenet1_1.pth and mobilenet_v2.pth. OUT gets
# NAME/sweep-layers/ with table.csv and sweep.png of each network. Few epochs, and every third training photo for the two
# networks that take longer: how accuracy rises with depth is wanted, not the best accuracy.
set -euo pipefail
photos=$(realpath "$1") weights=$2 out=$3
mkdir -p "$out/third/train"
ln -sfn "$photos/val" "$out/third/val"
ln -sfn "$photos/test" "$out/third/test"
for class in "$photos"/train/*; do
    mkdir -p "$out/third/train/${class##*/}"
    find "$class" -type f | sort | awk 'NR % 3 == 1' | xargs -I{} ln -sfn {} "$out/third/train/${class##*/}/"
done
sweep() {
    penult train "$1" --out "$out/$2" --arch "${@:2}" --sweep layers --svm linear --augment topdown --fit stretch \
        --schedule onecycle --device cpu
}
sweep "$photos" squeezenet1_1 --weights "$weights/squeezenet1_1.pth" --freeze 2 --epochs 5 --train-crop 160 \
    --lr-backbone 3e-4
sweep "$out/third" mobilenet_v2 --weights "$weights/mobilenet_v2.pth" --freeze 2 --epochs 5 --train-crop 176 \
    --lr-backbone 7e-4 --lr-head 2e-3 --lr-stage-decay 0.7
sweep "$out/third" alexnet --weights none --epochs 12 --lr-head 2e-4
