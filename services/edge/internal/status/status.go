// Package status answers GET /v1/status/: whether the service and what it
// depends on are well, in the envelope the REST interface documents.
//
// The path is open to everybody, so requests cost nothing but the answer: each
// dependency is asked at most once a second and by one goroutine at a time, which
// ends when the dependency answers or keeps its deadline. An answer takes no
// longer than 800 ms: what has not answered by then is degraded. It is a 200
// also when something is degraded, and never tells more than that.
package status

import (
	"context"
	"math"
	"net/http"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/front/envelope"
)

const (
	// patience is how long a request waits for the dependencies.
	patience = 800 * time.Millisecond
	// freshness is how long an answer of a dependency is used.
	freshness = time.Second
)

// Sources tell how the dependencies are. The functions are called by several
// goroutines; those with a context should return when it is done.
type Sources struct {
	// Database returns the latency of auth's database.
	Database func(ctx context.Context) (time.Duration, error)
	// Cache asks Redis for a sign of life; the latency is measured here.
	Cache func(ctx context.Context) error
	// Stocks and Options report at once whether the feed of the market is live;
	// nil: the market is not configured, and not in the answer.
	Stocks, Options func() bool
}

// Handler answers GET /v1/status/. Safe for concurrent use.
type Handler struct {
	// Static after construction.
	database, cache *probe
	stocks, options func() bool // nil: not configured
}

// New makes a Handler.
func New(s Sources) *Handler {
	return &Handler{
		database: newProbe("edge/status database", s.Database),
		cache: newProbe("edge/status cache", func(ctx context.Context) (time.Duration, error) {
			began := time.Now()
			err := s.Cache(ctx)
			return time.Since(began), err
		}),
		stocks:  s.Stocks,
		options: s.Options,
	}
}

const (
	stateOK       = "ok"
	stateDegraded = "degraded"
)

type answer struct {
	Status    string   `json:"status"`
	RequestID string   `json:"request_id"`
	Services  services `json:"services"`
}

type services struct {
	API      *service `json:"api"`
	Database *service `json:"database"`
	Cache    *service `json:"cache"`
	Stocks   *service `json:"stream_stocks,omitempty"`
	Options  *service `json:"stream_options,omitempty"`
}

type service struct {
	Status    string   `json:"status"`
	LatencyMS *float64 `json:"latency_ms,omitempty"` // while it is well
}

// ServeHTTP implements http.Handler. The caller has checked the method.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	database, cache := h.database.ask(ctx), h.cache.ask(ctx)
	s := services{
		API:      &service{Status: stateOK},
		Database: dependency(database.wait(ctx)),
		Cache:    dependency(cache.wait(ctx)),
		Stocks:   stream(h.stocks),
		Options:  stream(h.options),
	}
	overall := stateOK
	for _, one := range []*service{s.Database, s.Cache, s.Stocks, s.Options} {
		if one != nil && one.Status != stateOK {
			overall = stateDegraded
		}
	}
	envelope.Write(w, http.StatusOK, answer{Status: overall, RequestID: envelope.RequestID(), Services: s})
}

func dependency(latency time.Duration, err error) *service {
	if err != nil {
		return &service{Status: stateDegraded}
	}
	ms := math.Round(float64(latency)/float64(time.Millisecond)*100) / 100
	return &service{Status: stateOK, LatencyMS: &ms}
}

func stream(live func() bool) *service {
	switch {
	case live == nil:
		return nil
	case live():
		return &service{Status: stateOK}
	}
	return &service{Status: stateDegraded}
}
