// Package kind has a cluster in Docker to try the chart on: `make kind-up`.
package kind

import (
	"os"
	"testing"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
)

func TestClusterFile(t *testing.T) {
	t.Parallel()
	file, err := os.Open("cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	decoder := yaml.NewDecoder(file)
	decoder.KnownFields(true)
	var c v1alpha4.Cluster
	if err := decoder.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if c.Kind != "Cluster" || c.APIVersion != "kind.x-k8s.io/v1alpha4" || c.Name != "relay" {
		t.Errorf("%+v of the name %q", c.TypeMeta, c.Name)
	}
	zones := map[string]bool{}
	for _, n := range c.Nodes {
		if n.Role == v1alpha4.WorkerRole {
			zones[n.Labels["topology.kubernetes.io/zone"]] = true
		}
	}
	if len(c.Nodes) != 3 || len(zones) != 2 || zones[""] {
		t.Errorf("%d nodes, workers in the zones %v; want 3 and two zones", len(c.Nodes), zones)
	}
}
