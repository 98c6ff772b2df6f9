package leader

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	coordination "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const leasesPath = "/apis/coordination.k8s.io/v1/namespaces/relay/leases/"

// apiServer is the part of a Kubernetes API server that serves Leases: get, and
// update with the check of the resource version.
type apiServer struct {
	*testing.T
	server http.Server

	mu sync.Mutex
	// Guarded by mu.
	leases  map[string]*coordination.Lease
	version int
	calls   []string // method and name of each request but for those with faults
	// fault is asked before a request is served; false: it has been answered.
	fault func(w http.ResponseWriter, r *http.Request) bool
	// answered is told of an update that was carried out, before its answer.
	answered func(lease *coordination.Lease)
}

// created is when the Leases of the tests have been.
var created = time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)

func newAPIServer(t *testing.T, names ...string) *apiServer {
	a := &apiServer{T: t, leases: make(map[string]*coordination.Lease)}
	a.server.Handler = a
	for _, name := range names {
		a.create(name, created)
	}
	return a
}

func (a *apiServer) create(name string, at time.Time) {
	a.change(func() {
		a.version++
		a.leases[name] = &coordination.Lease{
			TypeMeta: metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "relay", CreationTimestamp: metav1.NewTime(at),
				ResourceVersion: fmt.Sprint(a.version)},
		}
	})
}

func (a *apiServer) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// edit changes a Lease as somebody with kubectl does.
func (a *apiServer) edit(name string, f func(lease *coordination.Lease)) {
	a.change(func() {
		lease := a.leases[name].DeepCopy()
		f(lease)
		a.version++
		lease.ResourceVersion = fmt.Sprint(a.version)
		a.leases[name] = lease
	})
}

func (a *apiServer) setFault(f func(w http.ResponseWriter, r *http.Request) bool) {
	a.change(func() { a.fault = f })
}

// holder returns who holds a Lease, and its transitions.
func (a *apiServer) holder(name string) (string, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	spec := a.leases[name].Spec
	if spec.HolderIdentity == nil {
		return "", 0
	}
	return *spec.HolderIdentity, int(*spec.LeaseTransitions)
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if got := r.UserAgent(); got != userAgent {
		a.Errorf("user agent %q", got)
	}
	// With the body unread, the server would not see the client leave.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	a.mu.Lock()
	fault := a.fault
	a.mu.Unlock()
	if fault != nil && !fault(w, r) {
		return
	}
	a.serve(w, r)
}

func (a *apiServer) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	name, ok := strings.CutPrefix(r.URL.Path, leasesPath)
	a.calls = append(a.calls, r.Method+" "+name)
	lease := a.leases[name]
	switch {
	case !ok || r.Method != http.MethodGet && r.Method != http.MethodPut:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	case lease == nil:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	case r.Method == http.MethodPut:
		update := &coordination.Lease{}
		if err := json.Unmarshal(body, update); err != nil {
			a.Error(err)
		}
		if update.ResourceVersion != lease.ResourceVersion {
			refuse(w, http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		a.version++
		update.ResourceVersion = fmt.Sprint(a.version)
		update.CreationTimestamp = lease.CreationTimestamp
		lease, a.leases[name] = update, update
		if a.answered != nil {
			a.answered(update)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(lease)
}

// refuse answers as the API server does.
func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: "refused by the test",
	})
}

// inMemory serves by pipes, which a synctest bubble can wait for. The access it
// returns is one process's way to the API server.
func (a *apiServer) inMemory() func() *rest.Config {
	l := &pipeListener{connections: make(chan net.Conn), closed: make(chan struct{})}
	served := make(chan error, 1)
	go func() { served <- a.server.Serve(l) }()
	a.Cleanup(func() {
		_ = a.server.Close()
		<-served
	})
	return func() *rest.Config {
		return &rest.Config{Host: "http://api", Transport: &http.Transport{DialContext: l.dial}}
	}
}

type pipeListener struct {
	connections chan net.Conn
	closed      chan struct{}
	once        sync.Once
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.connections <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.connections:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "api", Net: "pipe"} }
