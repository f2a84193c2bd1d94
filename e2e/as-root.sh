#!/usr/bin/env bash
# Runs a command as root: e2e/as-root.sh COMMAND [ARGUMENT]…. By sudo, unless root calls; it can be Cargo's `runner`.
set -euo pipefail
[ "$(id -u)" != 0 ] || exec "$@"
command -v sudo >/dev/null || { echo "as-root: '$1' has to run as root: install sudo, or be root" >&2; exit 1; }
# sudo drops most variables, and its secure_path replaces PATH whatever it is told to preserve; so they are handed over.
# The tools of an administrator are not in every user's PATH.
kept=("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin")
while IFS= read -r name; do
  kept+=("$name=${!name}")
done < <(compgen -e | grep -E '^(PADDOCK_|CARGO_|RUST_|LD_LIBRARY_PATH$|DEBIAN_FRONTEND$)')
exec sudo env "${kept[@]}" "$@"
