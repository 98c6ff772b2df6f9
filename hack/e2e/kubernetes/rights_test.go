//go:build kubernetes

package kubernetes

import (
	"strings"
)

// mayOnly checks what the service accounts may do: fanout to get and update its
// Leases, the others nothing.
func mayOnly(k *kube) {
	k.t.Helper()
	for _, component := range []string{"edge", "fanout", "auth"} {
		as := "--as=system:serviceaccount:" + k.namespace + ":relay-" + component
		leads := component == "fanout"
		for _, c := range []struct {
			verb, what string
			may        bool
		}{
			{"get", "leases.coordination.k8s.io/relay-fanout-stocks", leads},
			{"update", "leases.coordination.k8s.io/relay-fanout-stocks", leads},
			{"get", "leases.coordination.k8s.io/relay-fanout-options", leads},
			{"update", "leases.coordination.k8s.io/relay-fanout-options", leads},
			{"patch", "leases.coordination.k8s.io/relay-fanout-stocks", false},
			{"delete", "leases.coordination.k8s.io/relay-fanout-stocks", false},
			{"get", "leases.coordination.k8s.io/another", false},
			{"create", "leases.coordination.k8s.io", false},
			{"list", "leases.coordination.k8s.io", false},
			{"watch", "leases.coordination.k8s.io", false},
			{"get", "pods", false},
			{"get", "secrets", false},
			{"get", "configmaps", false},
			{"list", "endpointslices.discovery.k8s.io", false},
		} {
			out, _ := k.try("auth", "can-i", c.verb, c.what, as) // "no" is an error too
			if answer := strings.TrimSpace(out); answer != map[bool]string{true: "yes", false: "no"}[c.may] {
				k.t.Errorf("%s: may %s %s: %s, want %t", component, c.verb, c.what, answer, c.may)
			}
		}
		// Besides, the list has what everybody may: to ask who they are and what they may.
		for line := range strings.Lines(k.kubectl("auth", "can-i", "--list", "--no-headers", as)) {
			resource := strings.Fields(line)[0]
			everybody := strings.HasPrefix(resource, "[") || strings.HasPrefix(resource, "selfsubject")
			its := leads && resource == "leases.coordination.k8s.io" && strings.Contains(line, "[get update]")
			if !everybody && !its {
				k.t.Errorf("%s has a right too many: %s", component, strings.TrimSpace(line))
			}
		}
	}
}
