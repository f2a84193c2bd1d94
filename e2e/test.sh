#!/usr/bin/env bash
# Runs the tests and adds up their counts: e2e/test.sh all|unit|e2e [part of an end-to-end test's name]
set -uo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}
name=${2:-}
# Real guests, namespaces and bridges need root. Only what Cargo has built runs so: its own files stay the user's.
runner=()
if [ "$what" != unit ] && [ "$(id -u)" != 0 ]; then
  runner=(--config "target.'cfg(all())'.runner = [\"$PWD/e2e/as-root.sh\"]")
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
run() { "$@" 2>&1 | tee -a "$log"; local rc=${PIPESTATUS[0]}; [ "$rc" = 0 ] || status=1; }

if [ "$what" = unit ]; then
  cargo build --workspace --all-targets || exit 1
  # The lab's own tests need a control plane: they run with `all`.
  run cargo test --no-fail-fast --workspace --lib --bins
  run cargo test --no-fail-fast --workspace --exclude paddock-e2e --exclude paddock-lab --test '*'
else
  e2e/prepare.sh || exit 1
  PADDOCK_CONTROL_PLANE=$(e2e/control-plane/build.sh | tail -1) || exit 1
  PADDOCK_HELM=$(e2e/control-plane/build.sh --helm | tail -1) || exit 1
  PADDOCK_IMAGES=$(e2e/harness/image/build.sh | tail -1) || exit 1
  export PADDOCK_CONTROL_PLANE PADDOCK_HELM PADDOCK_IMAGES
  cargo build --workspace --all-targets || exit 1
  target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
  export PADDOCK_BIN_DIR=$target/debug
  if [ "$what" = all ]; then
    # The doc tests of a workspace cost a link each and hold nothing that the others do not.
    run cargo "${runner[@]}" test --no-fail-fast --workspace --exclude paddock-e2e --lib --bins --tests
  fi
  if [ "$what" = all ]; then
    run e2e/fuzz.sh "${PADDOCK_FUZZ_SECONDS:-20}"
  fi
  # By the name of its target, not by package: another choice of packages would compile the dependencies anew.
  run cargo "${runner[@]}" test --quiet --workspace --test e2e -- ${name:+"$name"}
fi

awk -v status="$status" '
  /^test result: / { passed += $4; failed += $6; skipped += $8 }
  /^e2e: [0-9]+ passed, / { passed += $2; failed += $4; skipped += $6 }
  /^fuzz: [0-9]+ targets, / { passed += $2 - $4; failed += $4 }
  # Behind the name of its test where the tests run one by one.
  /^(test .* \.\.\. )?skipped: / { skipped += 1 }
  END {
    if (status != 0 && failed == 0) failed = 1
    printf "total: %d passed, %d failed, %d skipped\n", passed, failed, skipped
  }' "$log"
exit "$status"
