package leader

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	coordination "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// TestChaos: whatever the API server does to whom, never do two lead at a time with
// proof, and epochs grow (work checks both); in the end one leads.
func TestChaos(t *testing.T) {
	for seed := range int64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, rand.New(rand.NewSource(seed))) })
		})
	}
}

func chaos(t *testing.T, random *rand.Rand) {
	a := newArena(t, stocks)
	names := []string{"x", "y", "z"}
	processes := make(map[string]*process)
	start := func(name string) {
		processes[name] = a.join(name, time.Duration(random.Int63n(int64(closing))))
	}
	for _, name := range names {
		start(name)
	}
	starts := 0
	for range 60 {
		name := names[random.Intn(len(names))]
		whom := name
		if random.Intn(3) == 0 {
			whom = ""
		}
		delay := time.Duration(random.Int63n(int64(deadline)))
		switch random.Intn(9) {
		case 0:
			processes[name].end()
			start(name)
			starts++
		case 1:
			a.api.setFault(hang(whom))
		case 2: // carried out, but the answer is lost
			a.api.setFault(func(w http.ResponseWriter, r *http.Request) bool {
				if from(whom, r) {
					a.api.serve(discard{}, r)
					<-r.Context().Done()
				}
				return !from(whom, r)
			})
		case 3: // slow, there or back
			before := random.Intn(2) == 0
			a.api.setFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !from(whom, r) {
					return true
				}
				if before {
					time.Sleep(delay)
				}
				a.api.serve(w, r)
				if !before {
					time.Sleep(delay)
				}
				return false
			})
		case 4:
			a.api.setFault(refuseAll(http.StatusInternalServerError, metav1.StatusReasonInternalError))
		case 5:
			a.api.edit(stocks, func(l *coordination.Lease) { l.Labels = map[string]string{"edited": fmt.Sprint(random.Int())} })
		default:
			a.api.setFault(nil)
		}
		time.Sleep(time.Duration(random.Int63n(int64(8 * time.Second))))
	}
	a.api.setFault(nil)
	time.Sleep(duration + 3*atMost)
	a.mu.Lock()
	if a.working != 1 {
		t.Errorf("%d lead in the end", a.working)
	}
	if len(a.epochs) < 2 {
		t.Errorf("only %d leaderships with %d restarts", len(a.epochs), starts)
	}
	a.mu.Unlock()
	for _, name := range names {
		processes[name].end()
	}
}

// TestRealSockets: the same through TCP and the clock of the machine.
func TestRealSockets(t *testing.T) {
	api := newAPIServer(t, stocks)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- api.server.Serve(listener) }()
	defer func() {
		_ = api.server.Close()
		<-served
	}()
	c := LeaseConfig{Namespace: "relay", Name: "relay-fanout", Duration: time.Second, RenewDeadline: 500 * time.Millisecond, RetryPeriod: 100 * time.Millisecond, Closing: 400 * time.Millisecond}
	type term struct {
		process int
		epoch   Epoch
	}
	leads := make(chan term, 2)
	var stops []context.CancelFunc
	ended := make(chan error, 2)
	for process := range 2 {
		k, err := NewKubernetes(&rest.Config{Host: "http://" + listener.Addr().String()}, c, []string{"stocks"}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		stops = append(stops, stop)
		go func() {
			ended <- k.Run(ctx, "stocks", func(ctx context.Context, l Leadership) error {
				leads <- term{process, l.Epoch}
				<-ctx.Done()
				return nil
			})
		}()
	}
	first := <-leads
	stops[first.process]()
	second := <-leads
	if second.process == first.process || second.epoch.Compare(first.epoch) <= 0 {
		t.Errorf("%v leads after %v", second, first)
	}
	stops[second.process]()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
