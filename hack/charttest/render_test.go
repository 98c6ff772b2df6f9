package charttest

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

const (
	chart       = "../../charts/relay"
	kubeVersion = "1.34.0"
)

// helms are the binaries under test. Helm 4 alone takes minutes to build where
// nothing is cached, so CI renders with Helm 3.
var helms = []string{"helm3", "helm4"}

func TestMain(m *testing.M) {
	flag.Func("helm", "versions of Helm, such as 3,4 (default both)", func(versions string) error {
		helms = nil
		for version := range strings.SplitSeq(versions, ",") {
			helms = append(helms, "helm"+version)
		}
		return nil
	})
	flag.Parse()
	os.Exit(m.Run())
}

// valueSets are the files of charts/relay/ci, without "-values.yaml".
var valueSets = []string{"required", "try", "full"}

func valuesFile(set string) string { return filepath.Join(chart, "ci", set+"-values.yaml") }

// decoder refuses fields that are unknown or given twice.
var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, coordinationv1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme,
	} {
		utilruntime.Must(add(scheme))
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

// run runs a Helm that knows no cluster.
func run(t *testing.T, helm string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	binary, err := filepath.Abs("../../bin/" + helm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: run `make bin/%s`", err, helm)
	}
	home := t.TempDir()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home, "KUBECONFIG="+home+"/none")
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func template(t *testing.T, helm string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return run(t, helm, append([]string{"template", "relay", chart, "--namespace", "feeds", "--kube-version", kubeVersion}, args...)...)
}

// manifests are the objects of a release.
type manifests struct {
	text        string
	objects     map[string]runtime.Object // by kind and name
	deployments map[string]*appsv1.Deployment
	services    map[string]*corev1.Service
	accounts    map[string]*corev1.ServiceAccount
	budgets     map[string]*policyv1.PodDisruptionBudget
	leases      map[string]*coordinationv1.Lease
	roles       map[string]*rbacv1.Role
	bindings    map[string]*rbacv1.RoleBinding
	tests       map[string]*corev1.Pod
}

func render(t *testing.T, helm string, args ...string) *manifests {
	t.Helper()
	text, stderr, err := template(t, helm, args...)
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	m := &manifests{
		text:        text,
		objects:     map[string]runtime.Object{},
		deployments: map[string]*appsv1.Deployment{},
		services:    map[string]*corev1.Service{},
		accounts:    map[string]*corev1.ServiceAccount{},
		budgets:     map[string]*policyv1.PodDisruptionBudget{},
		leases:      map[string]*coordinationv1.Lease{},
		roles:       map[string]*rbacv1.Role{},
		bindings:    map[string]*rbacv1.RoleBinding{},
		tests:       map[string]*corev1.Pod{},
	}
	for document := range strings.SplitSeq(text, "\n---\n") {
		document = strings.TrimPrefix(document, "---\n")
		if strings.TrimSpace(document) == "" {
			continue
		}
		object, kind, err := decoder.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		m.add(t, kind.Kind, object)
	}
	return m
}

func (m *manifests) add(t *testing.T, kind string, object runtime.Object) {
	t.Helper()
	key := kind + " " + object.(metav1.Object).GetName()
	if m.objects[key] != nil {
		t.Errorf("the chart makes %s twice", key)
	}
	m.objects[key] = object
	switch o := object.(type) {
	case *appsv1.Deployment:
		m.deployments[o.Name] = o
	case *corev1.Service:
		m.services[o.Name] = o
	case *corev1.ServiceAccount:
		m.accounts[o.Name] = o
	case *policyv1.PodDisruptionBudget:
		m.budgets[o.Name] = o
	case *coordinationv1.Lease:
		m.leases[o.Name] = o
	case *rbacv1.Role:
		m.roles[o.Name] = o
	case *rbacv1.RoleBinding:
		m.bindings[o.Name] = o
	case *corev1.Pod:
		m.tests[o.Name] = o
	default:
		t.Errorf("the chart makes a %T", object)
	}
}

// pods are the pods of all deployments and of the test, by the name of their
// component.
func (m *manifests) pods() map[string]corev1.PodTemplateSpec {
	pods := map[string]corev1.PodTemplateSpec{}
	for name, d := range m.deployments {
		pods[strings.TrimPrefix(name, "relay-")] = d.Spec.Template
	}
	for name, p := range m.tests {
		pods[strings.TrimPrefix(name, "relay-")] = corev1.PodTemplateSpec{ObjectMeta: p.ObjectMeta, Spec: p.Spec}
	}
	return pods
}

// eachSet runs a check for every set of values, with every Helm.
func eachSet(t *testing.T, check func(t *testing.T, set string, m *manifests)) {
	t.Helper()
	for _, helm := range helms {
		for _, set := range valueSets {
			t.Run(helm+" "+set, func(t *testing.T) {
				t.Parallel()
				check(t, set, render(t, helm, "--values", valuesFile(set)))
			})
		}
	}
}
