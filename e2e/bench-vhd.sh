#!/usr/bin/env bash
# Figures of the vhd command beside QEMU: JSON in target/bench/vhd.json, and a table. Arguments go to paddock-bench-vhd
# (--quick, --rounds N, --seconds N, --size MIB, --convert-size MIB, --only TEXT, --folder DIR). Needs no root.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
for tool in fio qemu-img qemu-nbd; do command -v $tool >/dev/null || missing+=("$tool"); done
[ ${#missing[@]} = 0 ] || { echo "missing: ${missing[*]}; \`make prepare\` installs them" >&2; exit 1; }
cargo build --release --package paddock-vhd-cli --bin vhd
cargo build --package paddock-bench --bin paddock-bench-vhd
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd)
"$target/debug/paddock-bench-vhd" --vhd "$target/release/vhd" --out target/bench "$@"
