#!/usr/bin/env bash
# Runs every fuzz target for a while, without cargo-fuzz: `fuzz/run.sh [SECONDS_EACH]`. Needs a C++ compiler; coverage comes from
# the compiler's own instrumentation, so the stable toolchain is enough. A crash leaves its input in fuzz/artifacts/ and ends the script.
set -euo pipefail
cd "$(dirname "$0")"
seconds="${1:-60}"
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
host="$(rustc -vV | sed -n 's/^host: //p')"
# With an explicit target the flags do not reach build scripts, which have no fuzzer to report to.
cargo build --release --target "$host"
for target in fuzz_targets/*.rs; do
  name="$(basename "$target" .rs)"
  mkdir -p "corpus/$name" "artifacts/$name"
  echo "== $name"
  "target/$host/release/$name" "corpus/$name" -max_total_time="$seconds" -max_len=4096 -artifact_prefix="artifacts/$name/" -print_final_stats=1
done
