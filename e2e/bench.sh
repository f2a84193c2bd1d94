#!/usr/bin/env bash
# Figures: JSON under target/bench, and a table. Arguments go to paddock-bench (apply, steady, guest, all; --quick).
set -euo pipefail
cd "$(dirname "$0")/.."
e2e/prepare.sh
PADDOCK_CONTROL_PLANE=$(e2e/control-plane/build.sh | tail -1)
PADDOCK_IMAGES=$(e2e/harness/image/build.sh | tail -1)
cargo build --release --bins
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
PADDOCK_BIN_DIR=$target/release
export PADDOCK_CONTROL_PLANE PADDOCK_IMAGES PADDOCK_BIN_DIR
mkdir -p target/bench
e2e/as-root.sh "$PADDOCK_BIN_DIR/paddock-bench" "${@:-all}" --out target/bench
