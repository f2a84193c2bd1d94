#!/usr/bin/env bash
# The quickstart on this computer: e2e/demo.sh up|down. With KUBECONFIG=FILE, on that cluster instead of a control plane of our own.
# PADDOCK_LAB_DIR names another folder than .lab. What PADDOCK_CONTROL_PLANE, PADDOCK_IMAGES and PADDOCK_BIN_DIR name is not built.
set -euo pipefail
fail() { echo "demo: $1" >&2; exit 1; }
cluster=${KUBECONFIG:+$(realpath -m -- "$KUBECONFIG")}
lab_folder=${PADDOCK_LAB_DIR:+$(realpath -m -- "$PADDOCK_LAB_DIR")}
cd "$(dirname "$0")/.."
here=$(pwd -P)
lab_folder=${lab_folder:-$here/.lab}
target=$(realpath -m -- "${CARGO_TARGET_DIR:-target}")
programs=${PADDOCK_BIN_DIR:-$target/debug}
deadline_seconds=${PADDOCK_DEMO_DEADLINE:-300}
export PADDOCK_LAB_DIR=$lab_folder
# The demo itself says to export the lab's own kubeconfig: that is nobody else's cluster.
case $cluster in "$lab_folder"/*) cluster='' ;; esac
unset KUBECONFIG

lab() { e2e/as-root.sh "$programs/paddock-lab" "$@"; }
kubectl() { "$control_plane/kubectl" --kubeconfig "$kubeconfig" "$@"; }
find_control_plane() { control_plane=${PADDOCK_CONTROL_PLANE:-$(e2e/control-plane/build.sh | tail -1)}; }

times=()
step_name='' step_start=0
begin() { step_name=$1 step_start=$(date +%s%N); echo "==> $1"; }
finish() {
  local milliseconds=$((($(date +%s%N) - step_start) / 1000000))
  times+=("$(printf '%8d.%d s  %s' $((milliseconds / 1000)) $((milliseconds % 1000 / 100)) "$step_name")")
}

build() {
  if [ -z "${PADDOCK_BIN_DIR:-}" ]; then
    if [ ! -x "$programs/paddock-lab" ]; then
      echo "The first run takes about 15 minutes on two cores: it installs packages, builds a Kubernetes control plane and"
      echo "Paddock from source. Later runs take seconds. About 8 GiB of disk and 3 GiB of memory are used."
    fi
    begin "packages"; e2e/prepare.sh; finish
    begin "Paddock"; cargo build --bins; finish
  fi
  begin "control plane (built once, kept in the cache)"; find_control_plane; finish
  begin "guest image"; images=${PADDOCK_IMAGES:-$(e2e/harness/image/build.sh | tail -1)}; finish
  export PADDOCK_CONTROL_PLANE=$control_plane PADDOCK_IMAGES=$images PADDOCK_BIN_DIR=$programs
}

# What the advice at the end puts into PATH. The lab's processes are root's, its folder the user's.
write_commands() {
  mkdir -p "$lab_folder/bin"
  ln -sfn "$control_plane/kubectl" "$lab_folder/bin/kubectl"
  printf '#!/usr/bin/env bash\nexport PADDOCK_LAB_DIR=%q\nexec %q %q "$@"\n' \
    "$lab_folder" "$here/e2e/as-root.sh" "$programs/paddock-lab" >"$lab_folder/bin/paddock-lab"
  chmod +x "$lab_folder/bin/paddock-lab"
}

# Waits for the page of a machine, from its host. The guest has to boot: asking again is waiting for it.
page() {
  local vm=$1 end=$((SECONDS + deadline_seconds)) host address page
  host=$(kubectl get "$vm" -o 'jsonpath={.status.host}')
  address=$(kubectl get "$vm" -o 'jsonpath={.status.ipAddress}')
  [ -n "$address" ] || fail "$vm is Ready but has no address"
  until page=$(lab exec "$host" -- curl --silent --show-error --fail --max-time 2 "http://$address/" 2>/dev/null); do
    [ "$SECONDS" -lt "$end" ] || fail "no page from $vm at $address within ${deadline_seconds} s: try '$lab_folder/bin/paddock-lab console ${vm#*/}'"
    read -rt 0.3 <> <(:) || :
  done
  echo "$host: http://$address/ says: $(tr '\n' ' ' <<<"$page" | sed 's/<[^>]*>/ /g; s/  */ /g')"
}

up() {
  [ -z "$cluster" ] || [ -r "$cluster" ] ||
    fail "KUBECONFIG: expected one file that can be read, found none at $cluster; unset it for a control plane of the demo's own"
  build
  begin "lab: hosts host-a and host-b"
  lab up --checkout "$here" ${cluster:+--kubeconfig "$cluster"}
  kubeconfig=$(lab kubeconfig)
  write_commands
  finish

  begin "apply manifests/quickstart"; kubectl apply -k manifests/quickstart; finish
  begin "machines Ready"
  local machines vm
  machines=$(kubectl get -k manifests/quickstart -o name | grep '^virtualmachine\.')
  # shellcheck disable=SC2086 # a name a word
  kubectl wait --for=condition=Ready $machines --timeout="${deadline_seconds}s" ||
    { kubectl describe $machines; fail "the machines did not become Ready within ${deadline_seconds} s: see above, and $lab_folder/bin/paddock-lab logs"; }
  finish
  begin "pages answer"
  for vm in $machines; do page "$vm"; done
  finish

  echo
  kubectl get vm,vhd,vnet,host -o wide
  echo
  printf '%s\n' "${times[@]}"
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

# The quickstart's objects, where the cluster outlives the lab. Which cluster that is the lab knows, whatever KUBECONFIG says today.
delete_objects() {
  kubeconfig=$1
  find_control_plane
  kubectl delete -k manifests/quickstart --ignore-not-found --timeout=120s ||
    fail "the quickstart's objects could not be deleted from the cluster of $kubeconfig: see above. If the lab's processes are gone: KUBECONFIG=$kubeconfig make demo, then make demo-down again"
}

down() {
  [ -e "$lab_folder" ] || { echo "nothing to remove: there is no $lab_folder"; return; }
  [ -x "$programs/paddock-lab" ] || fail "$programs/paddock-lab is missing: run 'cargo build --bins' first"
  local used
  if used=$(lab kubeconfig 2>/dev/null); then
    case $used in "$lab_folder"/*) ;; *) delete_objects "$used" ;; esac
  fi
  lab down
}

case ${1:-} in
  up) up ;;
  down) down ;;
  *) fail "expected up or down, found '${1:-}'" ;;
esac
