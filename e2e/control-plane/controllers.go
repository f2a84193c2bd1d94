package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	crdscheme "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/scheme"
	"k8s.io/apimachinery/pkg/util/wait"
	policy "k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	policystatus "k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus"
	"k8s.io/kubernetes/pkg/generated/openapi"
)

const (
	// apiServerDeadline bounds the wait for an API server that is started at the same time.
	apiServerDeadline = 2 * time.Minute
	// namespaceResync is kube-controller-manager's default.
	namespaceResync = 5 * time.Minute
)

// runControllers is a kube-controller-manager of five controllers: garbage collector, namespaces, service accounts,
// cluster role aggregation, and type checking of ValidatingAdmissionPolicies. No leader election: one runs per cluster.
func runControllers() int {
	flags := flag.NewFlagSet("kube-controller-manager", flag.ExitOnError)
	klog.InitFlags(flags)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig `file` of a cluster administrator (required)")
	// kube-controller-manager looks for new resources every 30 s. Here a test installs a definition and waits for the
	// children of its objects to be collected.
	gcSync := flags.Duration("gc-sync-period", 2*time.Second, "how often to look for new kinds of objects to collect")
	_ = flags.Parse(os.Args[1:]) // ExitOnError

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := manage(ctx, *kubeconfig, *gcSync); err != nil {
		fmt.Fprintf(os.Stderr, "kube-controller-manager: %v\n", err)
		return 1
	}
	return 0
}

// manage runs the controllers until ctx ends.
func manage(ctx context.Context, kubeconfig string, gcSync time.Duration) error {
	if kubeconfig == "" {
		return errors.New("expected --kubeconfig FILE, found none; name the kubeconfig of a cluster administrator")
	}
	if gcSync <= 0 {
		return fmt.Errorf("--gc-sync-period: expected a positive duration, found %v", gcSync)
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	// The API server's own fairness bounds the load; a client-side limit would only slow the deletion of namespaces.
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	if err := waitReady(ctx, client); err != nil {
		return fmt.Errorf("API server %s: not ready after %v: %w; start it, or correct kubeconfig %s",
			config.Host, apiServerDeadline, err, kubeconfig)
	}

	typed := informers.NewSharedInformerFactory(client, 0)
	all := informerfactory.NewInformerFactory(typed, metadatainformer.NewSharedInformerFactory(objects, 0))
	started := make(chan struct{})
	// The garbage collector resets this mapper when it sees a new resource, so it must not share Sync's discovery client.
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))

	graph := garbagecollector.NewDependencyGraphBuilder(
		ctx, objects, mapper, garbagecollector.DefaultIgnoredResources(), all, started)
	collector, err := garbagecollector.NewComposedGarbageCollector(ctx, client, objects, mapper, graph)
	if err != nil {
		return fmt.Errorf("garbage collector: %w", err)
	}
	namespaces := namespace.NewNamespaceController(ctx, client, objects,
		client.Discovery().ServerPreferredNamespacedResources, typed.Core().V1().Namespaces(), namespaceResync,
		corev1.FinalizerKubernetes)
	accounts, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx),
		typed.Core().V1().ServiceAccounts(), typed.Core().V1().Namespaces(), client,
		serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return fmt.Errorf("service account controller: %w", err)
	}
	roles := clusterroleaggregation.NewClusterRoleAggregation(typed.Rbac().V1().ClusterRoles(), client.RbacV1())
	policies, err := policystatus.NewController(typed.Admissionregistration().V1().ValidatingAdmissionPolicies(),
		client.AdmissionregistrationV1().ValidatingAdmissionPolicies(), &policy.TypeChecker{
			SchemaResolver: resolver.NewDefinitionsSchemaResolver(
				openapi.GetOpenAPIDefinitions, scheme.Scheme, crdscheme.Scheme,
			).Combine(&resolver.ClientDiscoveryResolver{Discovery: client.Discovery()}),
			RestMapper: mapper,
		})
	if err != nil {
		return fmt.Errorf("admission policy status controller: %w", err)
	}

	all.Start(ctx.Done())
	close(started)
	go collector.Sync(ctx, client.Discovery(), gcSync)
	var running wait.Group
	running.StartWithContext(ctx, func(ctx context.Context) { collector.Run(ctx, 5, 30*time.Second) })
	running.StartWithContext(ctx, func(ctx context.Context) { namespaces.Run(ctx, 5) })
	running.StartWithContext(ctx, func(ctx context.Context) { accounts.Run(ctx, 1) })
	running.StartWithContext(ctx, func(ctx context.Context) { roles.Run(ctx, 1) })
	running.StartWithContext(ctx, func(ctx context.Context) { policies.Run(ctx, 1) })
	running.Wait()
	return nil
}

// waitReady returns once the API server says it is ready, with the last error when it does not within the deadline.
func waitReady(ctx context.Context, client kubernetes.Interface) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, apiServerDeadline, true,
		func(ctx context.Context) (bool, error) {
			_, last = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
			return last == nil, nil
		})
	if err != nil && last != nil {
		return last
	}
	return err
}
