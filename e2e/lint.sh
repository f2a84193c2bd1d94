#!/usr/bin/env bash
# Formatting, clippy with warnings denied, dependencies' licences and sources, generated files current.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}
deny_version=0.19.0

step() { echo "lint: $1"; }

step "formatting"
cargo fmt --all --check
for module in e2e/control-plane e2e/control-plane/helm; do
  # Without a Go of the machine's own, the control plane's build brings one along.
  go=$(command -v gofmt || command -v .tools/go/go/bin/gofmt || true)
  [ -n "$go" ] || { echo "skipped: gofmt is not installed, so $module is not checked for formatting"; continue; }
  unformatted=$("$go" -l "$module"/*.go 2>/dev/null || true)
  [ -z "$unformatted" ] || { echo "not gofmt'ed: $unformatted" >&2; exit 1; }
done
git ls-files '*.sh' .ci/run | xargs -r -n1 bash -n

step "clippy"
cargo clippy --quiet --workspace --all-targets -- -D warnings

step "generated files"
cargo run --quiet --package paddock-crds --bin crdgen -- --check

step "dependencies"
deny=$cache/tools/bin/cargo-deny
if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $deny_version" ]; then
  echo "installing cargo-deny $deny_version (once, about three minutes)"
  cargo install --quiet --locked --root "$cache/tools" --version "$deny_version" cargo-deny
fi
"$deny" --log-level error check bans licenses sources
