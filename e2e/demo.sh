#!/usr/bin/env bash
# The quickstart on this computer: e2e/demo.sh up|down. With KUBECONFIG set, on that cluster instead of a control plane of our own.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
lab_folder=$here/.lab
target=${CARGO_TARGET_DIR:-$here/target}
deadline_seconds=${PADDOCK_DEMO_DEADLINE:-300}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo --preserve-env=PATH,KUBECONFIG,PADDOCK_BIN_DIR,PADDOCK_CONTROL_PLANE,PADDOCK_IMAGES,PADDOCK_CACHE "$@"; fi; }
lab() { as_root "$target/debug/paddock-lab" --dir "$lab_folder" "$@"; }
fail() { echo "demo: $1" >&2; exit 1; }

times=()
step_name='' step_start=0
begin() { step_name=$1 step_start=$(date +%s%N); echo "==> $1"; }
finish() {
  local milliseconds=$((($(date +%s%N) - step_start) / 1000000))
  times+=("$(printf '%8d.%d s  %s' $((milliseconds / 1000)) $((milliseconds % 1000 / 100)) "$step_name")")
}

up() {
  if [ ! -x "$target/debug/paddock-lab" ]; then
    echo "The first run takes about 15 minutes on two cores: it installs packages, builds a Kubernetes control plane and"
    echo "Paddock from source. Later runs take seconds. About 8 GiB of disk and 3 GiB of memory are used."
  fi
  begin "packages"; e2e/prepare.sh; finish
  begin "control plane (built once, kept in the cache)"; control_plane=$(e2e/control-plane/build.sh | tail -1); finish
  begin "Paddock"; cargo build --bins; finish
  begin "guest image"; images=$(e2e/harness/image/build.sh | tail -1); finish
  export PADDOCK_CONTROL_PLANE=$control_plane PADDOCK_IMAGES=$images PADDOCK_BIN_DIR=$target/debug

  begin "lab: hosts host-a and host-b"
  if [ -n "${KUBECONFIG:-}" ]; then lab up --kubeconfig "$KUBECONFIG"; else lab up; fi
  finish
  kubeconfig=${KUBECONFIG:-$lab_folder/kubeconfig}
  kubectl() { as_root "$control_plane/kubectl" --kubeconfig "$kubeconfig" "$@"; }

  begin "apply manifests/quickstart"; kubectl apply -k manifests/quickstart; finish
  begin "machines Ready"
  kubectl wait --for=condition=Ready vm --all --timeout="${deadline_seconds}s" ||
    { kubectl describe vm; fail "the machines did not become Ready within ${deadline_seconds} s: see above, and $lab_folder/logs"; }
  finish
  begin "pages answer"
  local end=$((SECONDS + deadline_seconds)) vm host address
  for vm in $(kubectl get vm -o name); do
    host=$(kubectl get "$vm" -o 'jsonpath={.status.host}')
    address=$(kubectl get "$vm" -o 'jsonpath={.status.ipAddress}')
    [ -n "$address" ] || fail "$vm is Ready but has no address"
    # The guest has to boot: asking again is waiting for it.
    until page=$(lab exec "$host" -- curl --silent --show-error --fail --max-time 2 "http://$address/" 2>/dev/null); do
      [ "$SECONDS" -lt "$end" ] || fail "no page from $vm at $address within ${deadline_seconds} s: try '$target/debug/paddock-lab console ${vm#*/}'"
      read -rt 0.3 <> <(:) || :
    done
    echo "$host: http://$address/ says: $(tr '\n' ' ' <<<"$page" | sed 's/<[^>]*>/ /g; s/  */ /g')"
  done
  finish

  echo
  kubectl get vm,vhd,vnet,host -o wide
  echo
  printf '%s\n' "${times[@]}"
  as_root mkdir -p "$lab_folder/bin"
  as_root ln -sfn "$control_plane/kubectl" "$lab_folder/bin/kubectl"
  as_root ln -sfn "$target/debug/paddock-lab" "$lab_folder/bin/paddock-lab"
  cat <<TRY

Everything keeps running. What to try next:
  export PATH=$lab_folder/bin:\$PATH KUBECONFIG=$kubeconfig
  kubectl get vm -w                                   # in another terminal
  kubectl describe vm web-1
  kubectl patch vm web-1 --type=merge -p '{"spec":{"runPolicy":"Paused"}}'
  paddock-lab console web-1                           # leave with Ctrl-]
  paddock-lab fault kill-qemu web-1                   # it comes back by itself
  paddock-lab fault kill-host host-a                  # the host reboots, its machines return
  kubectl explain vm.spec --recursive
  make demo-down
TRY
}

down() {
  [ -e "$lab_folder" ] || { echo "nothing to remove: there is no $lab_folder"; return; }
  [ -x "$target/debug/paddock-lab" ] || fail "$target/debug/paddock-lab is missing: run 'cargo build --bins' first"
  if [ -n "${KUBECONFIG:-}" ]; then
    control_plane=$(e2e/control-plane/build.sh | tail -1)
    as_root "$control_plane/kubectl" --kubeconfig "$KUBECONFIG" delete -k manifests/quickstart --ignore-not-found
  fi
  as_root rm -rf "$lab_folder/bin"
  lab down
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *) fail "expected up or down, found '${1:-}'" ;;
esac
