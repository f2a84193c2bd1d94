#!/usr/bin/env bash
# Runs the tests and adds up their counts: e2e/test.sh all|unit|e2e [part of an end-to-end test's name]
set -uo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
name=${2:-}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=PATH,CARGO_HOME,RUSTUP_HOME,CARGO_TARGET_DIR,PADDOCK_CACHE "$@"; fi; }
run() { "$@" 2>&1 | tee -a "$log"; local rc=${PIPESTATUS[0]}; [ "$rc" = 0 ] || status=1; }

if [ "$what" != unit ]; then
  e2e/prepare.sh || exit 1
fi
cargo build --workspace --all-targets || exit 1

if [ "$what" != e2e ]; then
  # The doc tests of a workspace cost a link each and hold nothing that the others do not.
  run cargo test --workspace --exclude paddock-e2e --all-targets
fi
if [ "$what" != unit ]; then
  control_plane=$(e2e/control-plane/build.sh | tail -1) || exit 1
  images=$(e2e/harness/image/build.sh | tail -1) || exit 1
  helm=$(e2e/control-plane/build.sh --helm | tail -1) || exit 1
  PADDOCK_BIN_DIR=${CARGO_TARGET_DIR:-target}/debug
  export PADDOCK_CONTROL_PLANE=$control_plane PADDOCK_IMAGES=$images PADDOCK_HELM=$helm PADDOCK_BIN_DIR
  run cargo test --quiet --package paddock-e2e --test e2e -- ${name:+"$name"}
fi

awk -v status="$status" '
  /^test result: / { passed += $4; failed += $6; skipped += $8 }
  /^e2e: [0-9]+ passed, / { passed += $2; failed += $4; skipped += $6 }
  /^skipped: / { skipped += 1 }
  END {
    if (status != 0 && failed == 0) failed = 1
    printf "total: %d passed, %d failed, %d skipped\n", passed, failed, skipped
  }' "$log"
exit "$status"
