#!/bin/bash
# On a machine with an NVIDIA GPU: does telemetry see what the GPU does?
#   tests/gpu/telemetry.sh TANDEM OUT
# (a) `tandem run` of the modeled engine with telemetry, while a burner (burn.cu) loads the GPU after some seconds of idling:
#     power, temperature and energy must rise. (b) The energy counter against integrated power; power, temperature, clock and
#     utilisation against nvidia-smi's own readings. Everything lands in OUT; check.py prints and judges.
set -eu
tandem=$(realpath "$1"); mkdir -p "$2"; out=$(realpath "$2"); here=$(cd "$(dirname "$0")" && pwd)
nvidia-smi --query-gpu=index,uuid,name,driver_version,power.limit,temperature.gpu,temperature.memory,pcie.link.gen.current --format=csv > "$out/gpu.csv"
nvcc --version | tail -2 > "$out/nvcc.txt"
nvcc -O3 -arch=native -o "$out/burn" "$here/burn.cu" 2> "$out/nvcc.log" || nvcc -O3 -o "$out/burn" "$here/burn.cu"
grep -m1 'model name' /proc/cpuinfo > "$out/cpu.txt"
nvidia-smi --query-gpu=timestamp,power.draw,power.draw.instant,temperature.gpu,temperature.memory,clocks.sm,utilization.gpu \
    --format=csv,noheader,nounits -lms 200 > "$out/nvidia-smi.csv" 2> "$out/nvidia-smi.err" &
smi=$!
"$out/burn" 30 8 > "$out/burn.json" &
burner=$!
# About 55 s of load: idle, burning, idle again. The engine computes nothing; the burner stands for it.
"$tandem" run tiny --set ENGINE=modeled --set MODELED_STEP_US=10000 --set OSL=128 --set CONCURRENCY=8 \
    --set MULTI_ROUND=32 --slice 5 --telemetry nvml --gpu-role decode=0 --out "$out/run" > "$out/stdout.txt" 2> "$out/stderr.txt" || echo "exit $?" >> "$out/stderr.txt"
wait "$burner"
kill "$smi" && wait "$smi" 2> /dev/null || echo "nvidia-smi had ended by itself: $(cat "$out/nvidia-smi.err")"
rm -f "$out/burn"
python3 "$here/check.py" "$out"
