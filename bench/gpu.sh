#!/usr/bin/env bash
# Runs bench/gpu.py and bench/front.py on a machine with a GPU that reaches no package index; says how to get there.
#   bench/gpu.sh dry          everything but the GPU, here, in about a minute
#   bench/gpu.sh pack [MODE]  here: put what that machine lacks into .whl/ and .ortgpu/ (git-ignored), MODE as below
#   bench/gpu.sh run [OPTS]   there: install what was carried, then bench/gpu.py OPTS and bench/front.py; results go to $OUT
# pack needs ORT_GPU_CHUNKS, the script that packs onnxruntime-gpu (default: ../shared/tools/ort_gpu_chunks.sh). MODE is
# its own: core (default, one piece), and where the driver says that a kernel image is missing, arch, then full.
# That machine is expected to have Python 3.12, PyTorch for CUDA 13, torchvision, onnx, onnxscript, scikit-learn, Pillow,
# NumPy and prometheus-client. `dry` takes the interpreter of .venv, or that of $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
carried=(grpcio protobuf grpcio-health-checking grpcio-reflection starlette uvicorn typing-extensions)
site=/tmp/penult-site

code() { export PYTHONPATH="$PWD/proto:$PWD/service:$PWD/export${1:+:$1}"; }

pack_wheels() {
  rm -rf .whl && mkdir .whl
  local name pins=()
  for name in "${carried[@]}"; do pins+=("$(grep -oE "^$name==[^ ;]+" locks/gpu.txt)"); done
  local platforms=() tag
  for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${tag}_x86_64"); done
  python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d .whl "${pins[@]}"
  ls .whl
}

pack_onnxruntime() {
  local tool=${ORT_GPU_CHUNKS:-../shared/tools/ort_gpu_chunks.sh}
  [ -f "$tool" ] || { echo "bench/gpu.sh pack needs the script that packs onnxruntime-gpu; name it in ORT_GPU_CHUNKS." >&2; exit 2; }
  bash "$tool" "${1:-core}" "$(sed -nE 's/^onnxruntime-gpu==([^ ;]+).*/\1/p' locks/gpu.txt)" .ortgpu
  local pieces
  pieces=$(find .ortgpu -maxdepth 1 -name 'part-*' | wc -l)
  echo; echo "For this benchmark: carry .whl with the last piece, and run: bash bench/gpu.sh run --fronts 4"
  [ "$pieces" -eq 1 ] || echo "(pieces before it: one call each, mkdir -p /tmp/ortgpu && cp .ortgpu/part-NN/* /tmp/ortgpu/)"
}

run() {
  if [ -e .ortgpu ]; then mkdir -p /tmp/ortgpu; cp .ortgpu/part-*/* /tmp/ortgpu/; fi
  local extra=""
  if [ -e /tmp/ortgpu/join.sh ]; then
    [ -d /tmp/ortgpu/site ] || (. /tmp/ortgpu/join.sh)
    extra=/tmp/ortgpu/site
  fi
  if compgen -G '.whl/*.whl' > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl
  fi
  if [ -d "$site" ]; then extra="${extra:+$extra:}$site"; fi
  # onnxruntime looks for CUDA beside itself, and it was not installed beside PyTorch's.
  local libraries
  libraries=$(python3 -c 'import glob, sys; print(":".join(sorted({d for p in sys.path for d in glob.glob(p + "/nvidia/*/lib")})))')
  export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PYTHONUNBUFFERED=1
  code "$extra"
  local missing
  missing=$(python3 -c '
import importlib.util as u
print(*[n for n in ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "PIL", "sklearn", "grpc", "grpc_health",
        "grpc_reflection", "google.protobuf", "starlette", "uvicorn", "prometheus_client") if not u.find_spec(n)])' 2>/dev/null) || missing="google.protobuf"
  [ -z "$missing" ] || { echo "bench/gpu.sh run lacks the Python modules: $missing; run bench/gpu.sh pack first and carry .whl and .ortgpu." >&2; exit 2; }
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || true
  local rc=0
  python3 bench/gpu.py --out "${OUT:-bench-out}" "$@" || rc=$?
  # The front without a model, with the cores of this machine: where a GPU waits for Python.
  python3 bench/front.py --quick | tee "${OUT:-bench-out}/front.md" || rc=1
  [ $rc -ne 1 ] || echo "A part failed. Where it says that no kernel image is available: bench/gpu.sh pack arch, then full." >&2
  return $rc
}

case ${1:-} in
  dry)
    shift; code ""
    "${PYTHON:-.venv/bin/python}" bench/gpu.py --dry "$@"
    "${PYTHON:-.venv/bin/python}" bench/front.py --quick --rounds 1 --only base ;;
  pack) shift; pack_wheels; pack_onnxruntime "$@" ;;
  wheels) pack_wheels ;;
  run) shift; run "$@" ;;
  *) sed -n '2,5p' "$0" | sed 's/^# *//' >&2; exit 2 ;;
esac
