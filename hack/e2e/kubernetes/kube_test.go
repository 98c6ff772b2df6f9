//go:build kubernetes

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim"
)

// kube is a cluster seen through kubectl.
type kube struct {
	t         *testing.T
	namespace string
	api       string          // of `kubectl proxy`
	pause     string          // command that stops the API server for a while
	resume    string          // command that lets it go on
	logs      string          // folder with the logs of all pods that ever were
	history   feedsim.History // as of the last phase
}

// pod is what the tests look at of one.
type pod struct {
	Metadata struct {
		Name              string  `json:"name"`
		DeletionTimestamp *string `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		PodIP      string `json:"podIP"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
	} `json:"status"`
}

func (p *pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True" && p.Metadata.DeletionTimestamp == nil
		}
	}
	return false
}

// command runs a program and returns its standard output; stdin may be empty.
// The error has what it printed as a complaint, and never what it was given.
func command(ctx context.Context, stdin, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out.String(), nil
}

func (k *kube) try(args ...string) (string, error) {
	return command(context.Background(), "", "kubectl", append([]string{"-n", k.namespace}, args...)...)
}

func (k *kube) kubectl(args ...string) string {
	k.t.Helper()
	out, err := k.try(args...)
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

// apply applies manifests.
func (k *kube) apply(manifests string) {
	k.t.Helper()
	if _, err := command(k.t.Context(), manifests, "kubectl", "apply", "-f", "-"); err != nil {
		k.t.Fatal(err)
	}
}

// serveAPI runs `kubectl proxy` until the test ends: pods are reached through the
// API server, from wherever the test runs.
func (k *kube) serveAPI() {
	k.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "kubectl", "proxy", "--port=0")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		k.t.Fatalf("kubectl proxy: %v", err)
	}
	k.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed
	})
	line := make([]byte, 256)
	n, err := out.Read(line)
	address := regexp.MustCompile(`127\.0\.0\.1:\d+`).Find(line[:n])
	if err != nil || address == nil {
		k.t.Fatalf("kubectl proxy says %q (%v), not where it serves", line[:n], err)
	}
	k.api = "http://" + string(address)
}

// call calls the API server about the pods of the namespace. The caller closes
// the body.
func (k *kube) call(ctx context.Context, method, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.api+"/api/v1/namespaces/"+k.namespace+"/pods"+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res.Body, nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return nil, errors.Join(fmt.Errorf("%s %s: HTTP %d: %s", method, path, res.StatusCode, body), err)
}

// ask calls a port of a pod and decodes the answer.
func (k *kube) ask(method, pod, port, path string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	answer, err := k.call(ctx, method, "/"+pod+":"+port+"/proxy/"+path)
	if err != nil {
		return err
	}
	defer answer.Close()
	body, err := io.ReadAll(answer)
	if err != nil {
		return err
	}
	if text, ok := into.(*string); ok {
		*text = string(body)
		return nil
	}
	return json.Unmarshal(body, into)
}

// pods are those of a component, also those that are about to end.
func (k *kube) pods(component string) []pod {
	k.t.Helper()
	pods, err := k.list(k.t.Context(), "app.kubernetes.io/component="+component)
	if err != nil {
		k.t.Fatal(err)
	}
	return pods
}

func (k *kube) list(ctx context.Context, selector string) ([]pod, error) {
	answer, err := k.call(ctx, http.MethodGet, "?labelSelector="+url.QueryEscape(selector))
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	var list struct{ Items []pod }
	if err := json.NewDecoder(answer).Decode(&list); err != nil {
		return nil, err
	}
	return list.Items, nil
}

// followLogs keeps the logs of all pods until the test ends, for those that are
// deleted take theirs with them.
func (k *kube) followLogs() {
	ctx, cancel := context.WithCancel(context.Background())
	k.t.Cleanup(cancel)
	followed := map[string]bool{}
	go func() {
		for ticker := time.NewTicker(time.Second); ctx.Err() == nil; {
			pods, _ := k.list(ctx, "") // again in a second
			for i := range pods {
				if name := pods[i].Metadata.Name; !followed[name] && pods[i].Status.Phase != "Pending" {
					followed[name] = true
					go k.followLog(ctx, name)
				}
			}
			select {
			case <-ctx.Done():
			case <-ticker.C:
			}
		}
	}()
}

func (k *kube) followLog(ctx context.Context, name string) {
	file, err := os.Create(filepath.Join(k.logs, name+".log"))
	if err != nil {
		return // the folder is gone: the test has ended
	}
	defer file.Close()
	log, err := k.call(ctx, http.MethodGet, "/"+name+"/log?follow=true")
	if err != nil {
		_, _ = fmt.Fprintln(file, err)
		return
	}
	defer log.Close()
	_, _ = io.Copy(file, log) // until the pod ends
}

// settled waits until a component has exactly so many pods, all ready, none
// ending, and none with the name of one that had to go.
func (k *kube) settled(component string, replicas int, gone ...string) []pod {
	k.t.Helper()
	var pods []pod
	k.until(3*time.Minute, fmt.Sprintf("%d %s pods are ready and no other is there", replicas, component), func() bool {
		pods = k.pods(component)
		ready := 0
		for i := range pods {
			if pods[i].ready() && !contains(gone, pods[i].Metadata.Name) {
				ready++
			}
		}
		return ready == replicas && len(pods) == replicas
	})
	return pods
}

// until polls; it fails the test when that takes too long, and says every 15 s
// that it still waits.
func (k *kube) until(within time.Duration, what string, ok func() bool) {
	k.t.Helper()
	began := time.Now()
	told := began
	for !ok() {
		now := time.Now()
		if now.Sub(began) > within {
			k.t.Fatalf("not within %s: %s", within, what)
		}
		if now.Sub(told) > 15*time.Second {
			k.t.Logf("waiting for %s until %s", now.Sub(began).Round(time.Second), what)
			told = now
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// pauseAPI lets no request to the API server through for a minute.
func (k *kube) pauseAPI() {
	k.t.Helper()
	const long = time.Minute
	resume := func() error {
		_, err := command(context.Background(), "", "sh", "-c", k.resume)
		return err
	}
	k.t.Cleanup(func() { _ = resume() }) // if the test ends meanwhile
	if _, err := command(k.t.Context(), "", "sh", "-c", k.pause); err != nil {
		k.t.Fatalf("pausing the API server: %v; API_PAUSE and API_RESUME are the commands that do it", err)
	}
	time.Sleep(long)
	if err := resume(); err != nil {
		k.t.Fatal(err)
	}
	for component, replicas := range map[string]int{"edge": 2, "fanout": 2, "auth": 1} {
		k.settled(component, replicas)
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// explain shows what all pods that ever were logged last, and what the cluster says of them.
func (k *kube) explain() {
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"get", "leases", "-o", "yaml"},
	} {
		out, err := k.try(args...)
		k.t.Logf("kubectl %s (%v)\n%s", strings.Join(args, " "), err, tail(out, 6000))
	}
	files, _ := filepath.Glob(filepath.Join(k.logs, "*.log"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		k.t.Logf("%s (%v)\n%s", filepath.Base(file), err, tail(string(text), 6000))
	}
}

func tail(text string, most int) string {
	if len(text) > most {
		return "…" + text[len(text)-most:]
	}
	return text
}
