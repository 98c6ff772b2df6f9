// Package watch is a crowd of well-behaved clients of a relay that judge what
// they get: each holds one socket, connects again as a client should, and says
// what it missed and whether it was told (package judge).
//
// Run starts one goroutine per client and one for the HTTP API, by which a test
// begins phases and reads figures. No event is kept. A machine too slow for the
// crowd shows as silence, and as 1008 of the relay.
package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/watch/judge"
)

const (
	headerTimeout = 5 * time.Second
	stopTimeout   = 2 * time.Second

	// arrivals is how many clients connect in a second when the watch begins.
	arrivals = 50
)

// Watch is the crowd.
type Watch struct {
	// Static after construction.
	log      *slog.Logger
	url      string
	listener net.Listener
	clients  []*client

	mu    sync.Mutex
	phase string
	began time.Time
}

// New reads the keys and opens the listener, which only Run closes again.
func New(o Options, log *slog.Logger) (*Watch, error) {
	now := time.Now()
	w := &Watch{log: log, url: o.URL, phase: "start", began: now}
	err := o.Validate()
	if err == nil {
		err = o.clients(w, now)
	}
	if err == nil {
		w.listener, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", o.Listen)
	}
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	return w, nil
}

// Addr is the address of the HTTP API.
func (w *Watch) Addr() net.Addr { return w.listener.Addr() }

// Run keeps the clients connected until ctx is done.
func (w *Watch) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range w.clients {
		group.Go(func() error {
			if pause(ctx, time.Duration(i)*time.Second/arrivals) {
				c.run(ctx)
			}
			return nil
		})
	}
	group.Go(func() error { return w.serve(ctx) })
	w.log.Info("watching", "url", w.url, "clients", len(w.clients), "listen", w.Addr().String())
	return group.Wait()
}

func (w *Watch) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /summary", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, w.summary(time.Now())) })
	mux.HandleFunc("POST /mark", func(rw http.ResponseWriter, r *http.Request) {
		answer(rw, w.mark(r.URL.Query().Get("phase"), time.Now()))
	})
	mux.HandleFunc("POST /second", w.second)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout}
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		stopped <- server.Shutdown(deadline)
	})()
	if err := server.Serve(w.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("watch: %w", err)
	}
	return <-stopped
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

// summary is that of the phase so far.
func (w *Watch) summary(now time.Time) judge.Summary {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]judge.Figures, len(w.clients))
	for i, c := range w.clients {
		all[i] = c.figures(now)
	}
	return judge.Sum(w.phase, w.began, now, all)
}

// mark begins a phase and returns the summary of the one before.
func (w *Watch) mark(phase string, now time.Time) judge.Summary {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]judge.Figures, len(w.clients))
	for i, c := range w.clients {
		all[i] = c.mark(now)
	}
	s := judge.Sum(w.phase, w.began, now, all)
	w.phase, w.began = phase, now
	return s
}

// Ending is how a socket ended that was one too many.
type Ending struct {
	Code     int      `json:"code"`
	Text     string   `json:"text"`
	Statuses []string `json:"statuses"`
	Error    string   `json:"error,omitempty"` // there was no close frame
}

// second opens another socket of a client's user, at the edge with this address,
// and answers how it ended.
func (w *Watch) second(rw http.ResponseWriter, r *http.Request) {
	number, err := strconv.Atoi(r.URL.Query().Get("client"))
	address := r.URL.Query().Get("address")
	if err != nil || number < 0 || number >= len(w.clients) || address == "" {
		http.Error(rw, "want client=NUMBER and address=HOST:PORT", http.StatusBadRequest)
		return
	}
	answer(rw, w.clients[number].second(r.Context(), address))
}

// pause waits; false: ctx was done before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
