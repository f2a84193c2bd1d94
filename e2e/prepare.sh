#!/usr/bin/env bash
# Checks this computer and installs the Debian packages in e2e/packages that are missing. Says what it does.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
lab_folder=${PADDOCK_LAB_DIR:-.lab}

fail() { echo "prepare: $1" >&2; exit 1; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "this runs on Linux on x86-64; found $(uname -sm)"
[ "$(id -u)" = 0 ] || command -v sudo >/dev/null || fail "root is needed for namespaces and bridges: run as root, or install sudo"
command -v cargo >/dev/null || fail "cargo is missing: install Rust with rustup (https://rustup.rs), then open a new shell"
# Most of the disk is for the first build, most of the memory for a lab that does not run yet.
needed_disk_mib=8192 needed_memory_mib=3072
[ ! -x "$target/debug/paddock-lab" ] || needed_disk_mib=1024
[ ! -S "$lab_folder/control.sock" ] || needed_memory_mib=512
free_mib=$(df --output=avail -m . | tail -1)
[ "$free_mib" -ge "$needed_disk_mib" ] || fail "needs $needed_disk_mib MiB of free disk here, found $((free_mib)) MiB: free some, or move the checkout"
memory_mib=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
[ "$memory_mib" -ge "$needed_memory_mib" ] || fail "needs $needed_memory_mib MiB of available memory, found $memory_mib MiB: stop something"
[ -c /dev/net/tun ] || e2e/as-root.sh modprobe tun 2>/dev/null || fail "/dev/net/tun is missing: load the module tun (modprobe tun)"

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
  export DEBIAN_FRONTEND=noninteractive
  { e2e/as-root.sh apt-get update -qq &&
    e2e/as-root.sh apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
    { tail -20 "$log" >&2; fail "apt-get could not install them; see above"; }
fi
