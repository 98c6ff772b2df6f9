package charttest

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/cutemarkets/relay/services/fanout"
)

func TestLint(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		for _, set := range valueSets {
			stdout, stderr, err := run(t, helm, "lint", "--strict", "--kube-version", kubeVersion, "--values", valuesFile(set), chart)
			if err != nil || strings.Contains(stdout, "[WARNING]") {
				t.Errorf("%s, %s: %v\n%s%s", helm, set, err, stdout, stderr)
			}
		}
	}
}

// TestObjects says which objects there are.
func TestObjects(t *testing.T) {
	t.Parallel()
	want := map[string]map[string]string{
		"required": {
			"deployments": "relay-auth relay-edge relay-fanout", "services": "relay-auth relay-edge relay-fanout",
			"budgets": "relay-edge relay-fanout", "leases": "relay-fanout-options relay-fanout-stocks", "tests": "",
		},
		"try": {
			"deployments": "relay-auth relay-edge relay-fanout relay-feedsim relay-redis",
			"services":    "relay-auth relay-edge relay-fanout relay-feedsim relay-redis",
			"budgets":     "relay-edge relay-fanout", "leases": "", "tests": "relay-test",
		},
		"full": {
			"deployments": "relay-auth relay-edge relay-fanout relay-feedsim", "services": "relay-auth relay-edge relay-fanout relay-feedsim",
			"budgets": "relay-edge relay-fanout", "leases": "relay-fanout-options", "tests": "relay-test",
		},
	}
	eachSet(t, func(t *testing.T, set string, m *manifests) {
		got := map[string]string{
			"deployments": names(m.deployments), "services": names(m.services), "budgets": names(m.budgets),
			"leases": names(m.leases), "tests": names(m.tests),
		}
		if diff := cmp.Diff(want[set], got); diff != "" {
			t.Error(diff)
		}
		if got := names(m.accounts); got != "relay-auth relay-edge relay-fanout" {
			t.Errorf("service accounts %s", got)
		}
	})
}

func names[T any](objects map[string]T) string {
	return strings.Join(slices.Sorted(maps.Keys(objects)), " ")
}

func TestHelmsAgree(t *testing.T) {
	t.Parallel()
	for _, set := range valueSets {
		first := render(t, helms[0], "--values", valuesFile(set)).objects
		for _, helm := range helms[1:] {
			if diff := cmp.Diff(first, render(t, helm, "--values", valuesFile(set)).objects); diff != "" {
				t.Errorf("%s: %s", set, diff)
			}
		}
	}
}

// TestPods checks what holds for every pod, that of `helm test` too.
func TestPods(t *testing.T) {
	t.Parallel()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	eachSet(t, func(t *testing.T, set string, m *manifests) {
		for name, pod := range m.pods() {
			for _, result := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
				if !result.Allowed {
					t.Errorf("%s: not restricted: %s: %s", name, result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
			spec := pod.Spec
			if token := spec.AutomountServiceAccountToken; token == nil || *token != (name == "fanout" && set != "try") {
				t.Errorf("%s: service account token mounted: %v", name, token)
			}
			if links := spec.EnableServiceLinks; links == nil || *links {
				t.Errorf("%s: service links", name)
			}
			if s := spec.SecurityContext; s == nil || *s.RunAsUser != 65532 || *s.RunAsGroup != 65532 || *s.FSGroup != 65532 {
				t.Errorf("%s: runs as %+v", name, s)
			}
			for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
				checkContainer(t, name, spec, c)
			}
		}
	})
}

func checkContainer(t *testing.T, pod string, spec corev1.PodSpec, c corev1.Container) {
	t.Helper()
	if c.Name != pod {
		t.Errorf("%s: a container %s", pod, c.Name)
	}
	if read := c.SecurityContext.ReadOnlyRootFilesystem; read == nil || !*read {
		t.Errorf("%s: the root is writable", pod)
	}
	if len(c.Command) != 0 {
		t.Errorf("%s: overrides the entry point", pod)
	}
	if limit := c.Resources.Limits.Memory(); limit.IsZero() {
		t.Errorf("%s: no memory limit", pod)
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil {
			t.Errorf("%s: the variable %s has its value from elsewhere", pod, e.Name)
		}
	}
	if len(c.EnvFrom) != 0 {
		t.Errorf("%s: takes variables from elsewhere", pod)
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Errorf("%s: mounts %s, which there is not", pod, m.Name)
			continue
		}
		if secret := spec.Volumes[i].Secret; secret != nil {
			if !m.ReadOnly || m.SubPath != "" || *secret.DefaultMode != 0o440 || len(secret.Items) != 1 {
				t.Errorf("%s: secret %s mounted as %+v", pod, secret.SecretName, m)
			}
		}
	}
}

// TestSecrets: they are named, and nothing else of them is in a manifest. The
// decoder knows Secrets, so TestObjects would see one.
func TestSecrets(t *testing.T) {
	t.Parallel()
	eachSet(t, func(t *testing.T, set string, m *manifests) {
		want := map[string]string{"edge": "", "fanout": "relay-upstream vendor-key", "auth": "relay-pepper pepper"}
		switch set {
		case "try":
			want["feedsim"], want["redis"], want["test"] = "relay-upstream vendor-key", "", "relay-test api-key"
		case "full":
			want = map[string]string{
				"edge": "redis redis-password", "fanout": "vendor api", "auth": "pepper value",
				"feedsim": "simulator api", "test": "prober prober-key",
			}
		}
		got := map[string]string{}
		for name, pod := range m.pods() {
			got[name] = ""
			for _, v := range pod.Spec.Volumes {
				if v.Secret != nil {
					got[name] += v.Secret.SecretName + " " + v.Secret.Items[0].Key
				}
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestSelectors: they are the same for all values, since they cannot be changed,
// and find what they are to find.
func TestSelectors(t *testing.T) {
	t.Parallel()
	eachSet(t, func(t *testing.T, _ string, m *manifests) {
		want := func(name string) map[string]string {
			return map[string]string{
				"app.kubernetes.io/name": "relay", "app.kubernetes.io/instance": "relay",
				"app.kubernetes.io/component": strings.TrimPrefix(name, "relay-"),
			}
		}
		for name, d := range m.deployments {
			if diff := cmp.Diff(want(name), d.Spec.Selector.MatchLabels); diff != "" {
				t.Errorf("deployment %s: %s", name, diff)
			}
			labels := d.Spec.Template.Labels
			for key, value := range want(name) {
				if labels[key] != value {
					t.Errorf("pods of %s: %s is %q", name, key, labels[key])
				}
			}
			for _, s := range d.Spec.Template.Spec.TopologySpreadConstraints {
				if diff := cmp.Diff(want(name), s.LabelSelector.MatchLabels); diff != "" {
					t.Errorf("spread of %s: %s", name, diff)
				}
			}
		}
		for name, s := range m.services {
			if diff := cmp.Diff(want(name), s.Spec.Selector); diff != "" {
				t.Errorf("service %s: %s", name, diff)
			}
			for _, port := range s.Spec.Ports {
				ports := m.deployments[name].Spec.Template.Spec.Containers[0].Ports
				if !slices.ContainsFunc(ports, func(p corev1.ContainerPort) bool { return p.Name == port.TargetPort.StrVal }) {
					t.Errorf("service %s: port %s leads nowhere", name, port.Name)
				}
			}
		}
		for name, b := range m.budgets {
			if diff := cmp.Diff(want(name), b.Spec.Selector.MatchLabels); diff != "" {
				t.Errorf("budget %s: %s", name, diff)
			}
			if b.Spec.MaxUnavailable.IntValue() != 1 || b.Spec.MinAvailable != nil {
				t.Errorf("budget %s: %+v", name, b.Spec)
			}
		}
	})
}

// TestLeadership: fanout can do what an election needs, and nothing else; with a
// leader by Redis that is nothing.
func TestLeadership(t *testing.T) {
	t.Parallel()
	eachSet(t, func(t *testing.T, set string, m *manifests) {
		checkFanout(t, m)
		if set == "try" {
			if len(m.leases)+len(m.roles)+len(m.bindings) > 0 {
				t.Errorf("leases %s, roles %s, bindings %s", names(m.leases), names(m.roles), names(m.bindings))
			}
			return
		}
		var resources []string
		for _, market := range strings.Split(argument(t, m, "fanout", "--markets"), ",") {
			resources = append(resources, argument(t, m, "fanout", "--lease-name")+"-"+market)
		}
		want := []rbacv1.PolicyRule{{
			APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, ResourceNames: resources, Verbs: []string{"get", "update"},
		}}
		if diff := cmp.Diff(want, m.roles["relay-fanout"].Rules); diff != "" || len(m.roles) != 1 {
			t.Errorf("%d roles: %s", len(m.roles), diff)
		}
		b := m.bindings["relay-fanout"]
		subject := rbacv1.Subject{Kind: "ServiceAccount", Name: "relay-fanout", Namespace: "feeds"}
		if len(m.bindings) != 1 || b.RoleRef.Name != "relay-fanout" || b.RoleRef.Kind != "Role" || !slices.Equal(b.Subjects, []rbacv1.Subject{subject}) {
			t.Errorf("%d bindings: %+v", len(m.bindings), b)
		}
		slices.Sort(resources)
		if got := names(m.leases); got != strings.Join(resources, " ") {
			t.Errorf("leases %s, want %s", got, resources)
		}
		for name, lease := range m.leases {
			if diff := cmp.Diff(coordinationv1.LeaseSpec{}, lease.Spec); diff != "" {
				t.Errorf("lease %s: an upgrade would overwrite %s", name, diff)
			}
		}
	})
}

func checkFanout(t *testing.T, m *manifests) {
	t.Helper()
	if account := m.deployments["relay-fanout"].Spec.Template.Spec.ServiceAccountName; account != "relay-fanout" {
		t.Errorf("fanout is %s", account)
	}
	s := m.services["relay-fanout"].Spec
	if s.ClusterIP != corev1.ClusterIPNone || s.PublishNotReadyAddresses {
		t.Errorf("service of fanout: %+v", s)
	}
	for name, account := range m.accounts {
		if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
			t.Errorf("service account %s: gives its token away", name)
		}
	}
}

// TestRedisLeader: fanout finds Redis as edges do, password and all.
func TestRedisLeader(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		m := render(t, helm, "--values", valuesFile("full"), "--set", "fanout.leader=redis")
		ofRedis := func(name string) (args []string, mounts []corev1.VolumeMount, volumes []corev1.Volume) {
			pod := m.deployments[name].Spec.Template.Spec
			for _, arg := range pod.Containers[0].Args {
				if strings.HasPrefix(arg, "--redis-") {
					args = append(args, arg)
				}
			}
			mounts = slices.DeleteFunc(slices.Clone(pod.Containers[0].VolumeMounts), func(m corev1.VolumeMount) bool { return m.Name != "redis" })
			return args, mounts, slices.DeleteFunc(slices.Clone(pod.Volumes), func(v corev1.Volume) bool { return v.Name != "redis" })
		}
		args, mounts, volumes := ofRedis("relay-edge")
		gotArgs, gotMounts, gotVolumes := ofRedis("relay-fanout")
		for _, diff := range []string{cmp.Diff(args, gotArgs), cmp.Diff(mounts, gotMounts), cmp.Diff(volumes, gotVolumes)} {
			if diff != "" {
				t.Errorf("%s: fanout is not as the edge: %s", helm, diff)
			}
		}
		if len(args) < 4 || len(mounts) != 1 || len(volumes) != 1 {
			t.Errorf("%s: %s, %d mounts, %d volumes", helm, args, len(mounts), len(volumes))
		}
		parse(t, m.deployments["relay-fanout"].Spec.Template.Spec, "", &fanout.Options{})
		if got := *m.deployments["relay-fanout"].Spec.Template.Spec.TerminationGracePeriodSeconds; got != 20 {
			t.Errorf("%s: fanout has %d s to stop", helm, got)
		}
	}
}

// TestRollOut: how pods of each kind are replaced.
func TestRollOut(t *testing.T) {
	t.Parallel()
	// The edge's own limit is its window and 5 s; it needs some more to end.
	const rest = 20
	eachSet(t, func(t *testing.T, set string, m *manifests) {
		sleep, window := int64(10), int64(60)
		if set == "full" {
			sleep, window = 20, 120
		}
		edge := m.deployments["relay-edge"]
		pod := edge.Spec.Template.Spec
		if got := pod.Containers[0].Lifecycle.PreStop.Sleep.Seconds; got != sleep {
			t.Errorf("the edge sleeps %d s", got)
		}
		if got := *pod.TerminationGracePeriodSeconds; got != sleep+window+rest {
			t.Errorf("the edge has %d s to stop", got)
		}
		if got := int64(*edge.Spec.ProgressDeadlineSeconds); got != sleep+window+rest+600 {
			t.Errorf("a roll of the edge may stand still for %d s", got)
		}
		one, none := intstr.FromInt32(1), intstr.FromInt32(0)
		rolling := appsv1.DeploymentStrategy{
			Type:          appsv1.RollingUpdateDeploymentStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &one, MaxUnavailable: &none},
		}
		for name, d := range m.deployments {
			want := appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
			if name == "relay-edge" || name == "relay-fanout" {
				want = rolling
			}
			if diff := cmp.Diff(want, d.Spec.Strategy); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	})
}

// TestProbes: services are asked on their operations port; what is asked for
// liveness there depends on nothing outside the process.
func TestProbes(t *testing.T) {
	t.Parallel()
	eachSet(t, func(t *testing.T, _ string, m *manifests) {
		for _, name := range []string{"edge", "fanout", "auth"} {
			c := m.deployments["relay-"+name].Spec.Template.Spec.Containers[0]
			for path, probes := range map[string][]*corev1.Probe{"/livez": {c.StartupProbe, c.LivenessProbe}, "/readyz": {c.ReadinessProbe}} {
				for _, p := range probes {
					if p == nil || p.HTTPGet == nil || p.HTTPGet.Path != path || p.HTTPGet.Port.StrVal != "operations" {
						t.Errorf("%s, %s: %+v", name, path, p)
					}
				}
			}
		}
		for name, d := range m.deployments {
			if c := d.Spec.Template.Spec.Containers[0]; c.LivenessProbe == nil || c.ReadinessProbe == nil {
				t.Errorf("%s: no probes", name)
			}
		}
	})
}

func TestBudgetsNeedTwoReplicas(t *testing.T) {
	t.Parallel()
	m := render(t, "helm3", "--values", valuesFile("required"), "--set", "edge.replicas=1,fanout.replicas=1")
	if len(m.budgets) != 0 {
		t.Errorf("budgets %s would keep nodes from being drained", names(m.budgets))
	}
}

func TestMemoryLimit(t *testing.T) {
	t.Parallel()
	for limit, want := range map[string]string{"512Mi": "409MiB", "2Gi": "1638MiB", "1G": "", "1.5Gi": "", "1000000000": ""} {
		m := render(t, "helm3", "--values", valuesFile("required"), "--set", "edge.resources.limits.memory="+limit)
		got := ""
		for _, e := range m.deployments["relay-edge"].Spec.Template.Spec.Containers[0].Env {
			if e.Name == "GOMEMLIMIT" {
				got = e.Value
			}
		}
		if got != want {
			t.Errorf("%s: GOMEMLIMIT %q, want %q", limit, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 53)
	for release, want := range map[string]string{"relay": "relay", "prod": "prod-relay", "relay-eu": "relay-eu", long: long[:48]} {
		text, stderr, err := run(t, "helm3", "template", release, chart, "--kube-version", kubeVersion, "--values", valuesFile("try"), "--set", "fanout.leader=kubernetes")
		if err != nil {
			t.Fatal(err, stderr)
		}
		for _, component := range []string{"edge", "fanout", "fanout-options", "auth", "feedsim", "redis"} {
			if name := want + "-" + component; !strings.Contains(text, "\n  name: "+name+"\n") || len(name) > 63 {
				t.Errorf("release %s: no %s, or it is too long", release, name)
			}
		}
	}
}
