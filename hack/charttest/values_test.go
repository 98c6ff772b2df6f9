package charttest

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// tree is a decoded values file or schema.
type tree = map[string]any

func read(t *testing.T, path string) tree {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var values tree
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return values
}

// leaves are the values by their names (edge.service.type), as far as the schema
// goes: what an object without properties holds is one value.
func leaves(schema, values tree, prefix string, into map[string]any) {
	for name, value := range values {
		s, _ := schema["properties"].(tree)[name].(tree)
		if _, inner := s["properties"]; inner {
			leaves(s, value.(tree), prefix+name+".", into)
			continue
		}
		into[prefix+name] = value
	}
}

// schemaNames are the names that the schema has, without those it has for Helm.
func schemaNames(schema tree, prefix string) (found []string) {
	for name, s := range schema["properties"].(tree) {
		switch s := s.(tree); {
		case s["properties"] != nil:
			found = append(found, schemaNames(s, prefix+name+".")...)
		case prefix+name != "global" && prefix+name != "enabled":
			found = append(found, prefix+name)
		}
	}
	slices.Sort(found)
	return found
}

// TestValuesAreDocumented: values.yaml, its schema and the README name the same
// values, and the README their defaults.
func TestValuesAreDocumented(t *testing.T) {
	t.Parallel()
	schema := read(t, filepath.Join(chart, "values.schema.json"))
	defaults := map[string]any{}
	leaves(schema, read(t, filepath.Join(chart, "values.yaml")), "", defaults)
	if diff := cmp.Diff(schemaNames(schema, ""), slices.Sorted(maps.Keys(defaults))); diff != "" {
		t.Errorf("values.yaml is not as the schema: %s", diff)
	}
	readme, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(readme), "\n## Values\n")
	row, name := regexp.MustCompile("(?m)^\\| (`.*?`) \\| (?:`(.*?)`)? ?\\| .+ \\|$"), regexp.MustCompile("`(.*?)`")
	documented := map[string]any{}
	for _, r := range row.FindAllStringSubmatch(table, -1) {
		for _, n := range name.FindAllStringSubmatch(r[1], -1) {
			var value any = ""
			if r[2] != "" {
				if err := json.Unmarshal([]byte(r[2]), &value); err != nil {
					t.Errorf("README: default of %s: %v", n[1], err)
				}
			}
			documented[n[1]] = value
		}
	}
	if diff := cmp.Diff(defaults, documented); diff != "" {
		t.Errorf("README.md is not as values.yaml: %s", diff)
	}
}

// TestEveryValueMatters takes each value of charts/relay/ci away: what is
// rendered must be something else, or refused. Together they have every value.
func TestEveryValueMatters(t *testing.T) {
	t.Parallel()
	schema := read(t, filepath.Join(chart, "values.schema.json"))
	tried := map[string]bool{}
	for _, set := range []string{"full", "try"} {
		given := map[string]any{}
		leaves(schema, read(t, valuesFile(set)), "", given)
		whole := render(t, "helm3", "--values", valuesFile(set)).text
		for name := range given {
			if tried[name] {
				continue
			}
			tried[name] = true
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				values := read(t, valuesFile(set))
				remove(values, strings.Split(name, "."))
				text, err := yaml.Marshal(values)
				if err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(t.TempDir(), "values.yaml")
				if err := os.WriteFile(file, text, 0o600); err != nil {
					t.Fatal(err)
				}
				if rest, _, err := template(t, "helm3", "--values", file); err == nil && rest == whole {
					t.Error("it has no effect")
				}
			})
		}
	}
	if diff := cmp.Diff(schemaNames(schema, ""), slices.Sorted(maps.Keys(tried))); diff != "" {
		t.Errorf("not all values are tried: %s", diff)
	}
}

func remove(values tree, path []string) {
	for ; len(path) > 1; path = path[1:] {
		values = values[path[0]].(tree)
	}
	delete(values, path[0])
}

// TestRefusals: what cannot work is refused with what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set  string
		args []string
		says []string
	}{
		"nothing given": {"", nil, []string{
			"image.registry is missing", "upstream.existingSecret is missing", "auth.pepper.existingSecret is missing",
			"openssl rand", "redis.address is missing", "devRedis.enabled=true", "auth.persistence.existingClaim is missing",
		}},
		"several auth":       {"required", []string{"--set", "auth.replicas=2"}, []string{"auth.replicas is 2", "leave it at 1"}},
		"claim or none":      {"required", []string{"--set", "auth.persistence.ephemeral=true"}, []string{"choose one"}},
		"two Redis":          {"required", []string{"--set", "devRedis.enabled=true"}, []string{"choose one"}},
		"password for none":  {"try", []string{"--set", "redis.existingSecret=x"}, []string{"goes with redis.address"}},
		"user, no password":  {"required", []string{"--set", "redis.username=x"}, []string{"needs redis.existingSecret"}},
		"lease times":        {"required", []string{"--set", "fanout.lease.duration=2"}, []string{"must be at least 3.5", "must be more than renewDeadline"}},
		"lease flags":        {"required", []string{"--set", "fanout.extraArgs={--lease-duration=9s}"}, []string{"use fanout.lease,"}},
		"leader flag":        {"required", []string{"--set", "fanout.extraArgs={--leader=redis}"}, []string{"use fanout.leader,"}},
		"unknown leader":     {"required", []string{"--set", "fanout.leader=static"}, []string{"/fanout/leader"}},
		"drain flags":        {"required", []string{"--set", "edge.extraArgs={--drain-window=9s}"}, []string{"use edge.drainWindow,"}},
		"lease retry":        {"required", []string{"--set", "fanout.lease.retryPeriod=5"}, []string{"longer than 1.2 times retryPeriod"}},
		"unknown value":      {"required", []string{"--set", "edge.replica=3"}, []string{"/edge", "replica"}},
		"unknown at root":    {"required", []string{"--set", "edges=3"}, []string{"edges"}},
		"no number":          {"required", []string{"--set", "edge.replicas=two"}, []string{"/edge/replicas", "integer"}},
		"unknown market":     {"required", []string{"--set", "markets={forex}"}, []string{"/markets/0", "stocks", "options"}},
		"no market":          {"required", []string{"--set-json", "markets=[]"}, []string{"/markets"}},
		"a key in the URL":   {"required", []string{"--set", "upstream.url=wss://vendor.example.com?key=x"}, []string{"/upstream/url"}},
		"no port":            {"required", []string{"--set", "redis.address=redis"}, []string{"/redis/address"}},
		"argument, not flag": {"required", []string{"--set", "edge.extraArgs={serve}"}, []string{"/edge/extraArgs/0"}},
		"old Kubernetes":     {"required", []string{"--kube-version", "1.29.0"}, []string{"1.30.0"}},
	} {
		for _, helm := range helms {
			t.Run(name+" "+helm, func(t *testing.T) {
				t.Parallel()
				args := c.args
				if c.set != "" {
					args = append([]string{"--values", valuesFile(c.set)}, args...)
				}
				_, stderr, err := template(t, helm, args...)
				for _, want := range c.says {
					if err == nil || !strings.Contains(stderr, want) {
						t.Errorf("%v, want %q in:\n%s", err, want, stderr)
					}
				}
			})
		}
	}
}

// TestUmbrella: a chart that depends on this one may give it what Helm gives.
func TestUmbrella(t *testing.T) {
	t.Parallel()
	for _, helm := range helms {
		render(t, helm, "--values", valuesFile("required"), "--set", "global.anything=x,enabled=true")
	}
}
