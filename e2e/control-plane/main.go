// Command paddock-control-plane is a real Kubernetes control plane in one static binary, for Paddock's own tests.
//
// It links etcd, the API server, the few controllers the tests rely on, and kubectl. The program it runs as is the name
// it was called by (a symbolic link) or, under any other name, its first argument:
//
//	paddock-control-plane etcd --data-dir …
//	ln -s paddock-control-plane kubectl && ./kubectl get nodes
//
// It knows nothing of Paddock: no types, no manifests. README.md lists the flags that a cluster needs.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

// programs maps each name to its main function. Every one reads os.Args, whose first element is by then its own name.
var programs = map[string]func() int{
	"etcd":                    runEtcd,
	"kube-apiserver":          runAPIServer,
	"kube-controller-manager": runControllers,
	"kubectl":                 runKubectl,
}

func main() {
	run, ok := programs[filepath.Base(os.Args[0])]
	if !ok && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		run, ok = programs[os.Args[0]]
	}
	if !ok {
		fmt.Fprintf(os.Stderr, "paddock-control-plane: expected a program to run, found %q; "+
			"give one of etcd, kube-apiserver, kube-controller-manager, kubectl as the first argument\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(run())
}

func runEtcd() int {
	// Returns after a clean stop by a signal; exits by itself on an error.
	etcdmain.Main(os.Args)
	return 0
}

func runAPIServer() int {
	return cli.Run(apiserver.NewAPIServerCommand())
}

func runKubectl() int {
	// The verbosity is needed while the command tree is still being built (plugins, kuberc).
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintf(os.Stderr, "kubectl: -v: %v\n", err)
		return 1
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // prints and exits
	}
	return 0
}
