#!/usr/bin/env bash
# Builds every fuzz target of every */fuzz folder on stable Rust and runs each for a while, two at a time.
# Usage: e2e/fuzz.sh [SECONDS (20)]. One line per target, and a last one: "fuzz: N targets, M failed".
# What a run finds beside the seeds stays under the target folder for the next one.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-20}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "usage: $0 [SECONDS]" >&2; exit 2; }
root=$PWD
out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
mkdir -p "$out/bin" "$out/log"
export CARGO_TARGET_DIR=$out
triple=$(rustc -vV | sed -n 's/^host: //p')

# libFuzzer's coverage without a nightly compiler or a sanitizer's runtime.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1 \
-Cdebug-assertions -Coverflow-checks"

mapfile -t folders < <(find . \( -name target -o -name .git \) -prune -o -path '*/fuzz/Cargo.toml' -printf '%P\n' | xargs -r -n1 dirname | sort)
[ ${#folders[@]} -gt 0 ] || { echo "skipped: there is no fuzz folder"; exit 0; }
case $(uname -m) in
  x86_64 | aarch64) ;;
  *) echo "skipped: no coverage for libFuzzer on $(uname -m)"; exit 0 ;;
esac
command -v c++ >/dev/null || { echo "skipped: no C++ compiler, which libFuzzer needs"; exit 0; }

# The targets of a folder, by its manifest.
targets() { sed -n '/^\[\[bin\]\]/,/^name/ s/^name = "\(.*\)"/\1/p' "$1/Cargo.toml"; }

# vmm-runtime/vhd/fuzz: vhd
crate() { basename "$(dirname "$1")"; }

build() {
  local folder=$1 log
  log=$out/log/$(crate "$folder").build
  (cd "$folder" && cargo build --quiet --release --target "$triple" "${@:2}") >"$log" 2>&1 && return
  tail -n 30 "$log" >&2
  return 1
}

failed=0 count=0 jobs=()
# For itself, to tell a machine that can't from a target that doesn't.
build "${folders[0]}" --package libfuzzer-sys || {
  echo "skipped: libFuzzer can't be built here, see above"
  exit 0
}
for folder in "${folders[@]}"; do
  name=$(crate "$folder")
  built=yes
  build "$folder" --bins || built=no
  for target in $(targets "$folder"); do
    count=$((count + 1))
    if [ $built = no ]; then
      echo "fuzz: $name/$target: FAILED to build"
      failed=$((failed + 1))
      continue
    fi
    # Folders share the place of their programs, and may use a name twice.
    mkdir -p "$out/bin/$name"
    cp "$out/$triple/release/$target" "$out/bin/$name/$target"
    jobs+=("$folder $target")
  done
done

run() {
  local folder=$1 target=$2 name corpus log status=0
  name=$(basename "$(dirname "$folder")")
  corpus=$out/corpus/$name/$target
  log=$out/log/$name-$target.run
  mkdir -p "$corpus" "$out/artifacts/$name"
  local dirs=("$corpus")
  [ ! -d "$root/$folder/corpus/$target" ] || dirs+=("$root/$folder/corpus/$target")
  # The second limit is for a target that hangs where libFuzzer can't tell.
  timeout --kill-after=10 $((seconds + 120)) "$out/bin/$name/$target" \
    -max_total_time="$seconds" -max_len=65536 -timeout=30 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$out/artifacts/$name/$target-" "${dirs[@]}" >"$log" 2>&1 || status=$?
  stat() { sed -n "s/^stat::$1: *//p" "$log"; }
  local execs rate size
  execs=$(stat number_of_executed_units)
  rate=$(stat average_exec_per_sec)
  size=$(find "${dirs[@]}" -type f | wc -l)
  if [ $status = 0 ]; then
    echo "fuzz: $name/$target: ${execs:-?} execs, ${rate:-?}/s, corpus $size"
  else
    echo "fuzz: $name/$target: FAILED after ${execs:-?} execs (status $status), see $log:"
    grep -aE 'panicked|ERROR|SUMMARY|Test unit written|^(called|assertion|index|attempt)' "$log" | head -n 8 | sed 's/^/  /'
    return 1
  fi
}
export -f run
export out root seconds

if [ ${#jobs[@]} -gt 0 ]; then
  mkdir -p "$out/status"
  rm -f "$out/status"/*
  printf '%s\n' "${jobs[@]}" |
    xargs -P2 -L1 bash -c 'run "$1" "$2" || : >"$out/status/$(basename "$(dirname "$1")")-$2"' run
  failed=$((failed + $(find "$out/status" -type f | wc -l)))
fi
echo "fuzz: $count targets, $failed failed"
[ $failed = 0 ]
