package feedsim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// untilResumed is the length of a pause that names none.
const untilResumed = 100 * 365 * 24 * time.Hour

// Stats is the answer to GET /stats.
type Stats struct {
	Stocks  market.Stats `json:"stocks"`
	Options market.Stats `json:"options"`
}

// Stats reads the counters of both markets.
func (s *Simulator) Stats() Stats {
	return Stats{Stocks: s.stocks.Stats(), Options: s.options.Stats()}
}

func (s *Simulator) handleControl(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Stats())
	})
	s.handleFault(mux, "outage", 0, (*market.Market).Outage)
	s.handleFault(mux, "pause", untilResumed, (*market.Market).Pause)
	s.handleFault(mux, "drop", untilResumed, func(m *market.Market, _ time.Duration) { m.Drop() })
	s.handleFault(mux, "resume", untilResumed, func(m *market.Market, _ time.Duration) { m.Resume() })
}

// handleFault serves POST /name?market=…&for=…. Without a market it takes both;
// without a duration it takes d, or refuses if that is zero.
func (s *Simulator) handleFault(mux *http.ServeMux, name string, d time.Duration, do func(*market.Market, time.Duration)) {
	mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		markets, err := s.markets(query.Get("market"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		length := d
		if text := query.Get("for"); text != "" || d == 0 {
			length, err = time.ParseDuration(text)
			if err != nil || length <= 0 {
				http.Error(w, "for: want a duration such as 3s", http.StatusBadRequest)
				return
			}
		}
		for _, m := range markets {
			do(m, length)
		}
		s.log.Info("told to misbehave", "fault", name, "market", query.Get("market"), "for", query.Get("for"))
		w.WriteHeader(http.StatusNoContent)
	})
}

func (s *Simulator) markets(name string) ([]*market.Market, error) {
	switch tape.Market(name) {
	case "":
		return []*market.Market{s.stocks, s.options}, nil
	case tape.Stocks:
		return []*market.Market{s.stocks}, nil
	case tape.Options:
		return []*market.Market{s.options}, nil
	default:
		return nil, fmt.Errorf("market: want %s or %s", tape.Stocks, tape.Options)
	}
}
