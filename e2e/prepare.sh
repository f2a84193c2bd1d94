#!/usr/bin/env bash
# Checks this computer and installs the Debian packages in e2e/packages that are missing. Says what it does.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "prepare: $1" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "this runs on Linux on x86-64; found $(uname -sm)"
[ "$(id -u)" = 0 ] || command -v sudo >/dev/null || fail "root is needed for namespaces and bridges: run as root, or install sudo"
command -v cargo >/dev/null || fail "cargo is missing: install Rust with rustup (https://rustup.rs), then open a new shell"
free_mib=$(df --output=avail -m . | tail -1)
[ "$free_mib" -ge 8192 ] || fail "needs 8 GiB of free disk here, found $((free_mib / 1024)) GiB: free some, or move the checkout"
memory_mib=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
[ "$memory_mib" -ge 3072 ] || fail "needs 3 GiB of available memory, found $memory_mib MiB: stop something"
[ -c /dev/net/tun ] || as_root modprobe tun 2>/dev/null || fail "/dev/net/tun is missing: load the module tun (modprobe tun)"

missing=()
while read -r package _; do
  case $package in ''|'#'*) continue ;; esac
  dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done < e2e/packages
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || fail "no apt-get here: install these by hand: ${missing[*]}"
  echo "installing Debian packages: ${missing[*]}"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  { as_root apt-get update -qq &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -20 "$log" >&2; fail "apt-get could not install them; see above"; }
fi
