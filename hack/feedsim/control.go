package feedsim

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/cutemarkets/relay/hack/feedsim/fault"
	"github.com/cutemarkets/relay/hack/feedsim/market"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

// Stats is the answer to GET /stats.
type Stats struct {
	Stocks  market.Stats `json:"stocks"`
	Options market.Stats `json:"options"`
}

// Stats reads the counters of both markets.
func (s *Simulator) Stats() Stats {
	return Stats{Stocks: s.stocks.Stats(), Options: s.options.Stats()}
}

// History is the answer to GET /sockets.
type History struct {
	Stocks  []market.Change `json:"stocks"`
	Options []market.Change `json:"options"`
}

// History tells how many authenticated sockets each market had when.
func (s *Simulator) History() History {
	return History{Stocks: s.stocks.History(), Options: s.options.History()}
}

func (s *Simulator) handleControl(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Stats()) })
	mux.HandleFunc("GET /sockets", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.History()) })
	mux.HandleFunc("POST /emit", s.emit)
	mux.HandleFunc("POST /fault/{name}", func(w http.ResponseWriter, r *http.Request) {
		s.command(w, r.PathValue("name"), r.URL.Query())
	})
	for path, n := range map[string]fault.Name{
		"outage": fault.Outage, "drop": fault.Drop, "pause": fault.Stall, "quiesce": fault.Quiesce, "resume": fault.Resume,
	} {
		mux.HandleFunc("POST /"+path, func(w http.ResponseWriter, r *http.Request) {
			s.command(w, n.String(), r.URL.Query())
		})
	}
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

// command orders a fault. When it answers, the files tell of what was before it.
func (s *Simulator) command(w http.ResponseWriter, name string, query url.Values) {
	arguments := make(map[string]string, len(query))
	for key := range query {
		if query[key][0] != "" {
			arguments[key] = query.Get(key)
		}
	}
	c, err := fault.Parse(name, arguments)
	switch {
	case errors.Is(err, fault.ErrUnknown):
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.order(c)
	if err := s.files.flush(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// emit sends a number of events ahead of their time, and answers how many it
// were in each market.
func (s *Simulator) emit(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	name := tape.Market(query.Get("market"))
	count, err := strconv.Atoi(query.Get("count"))
	if err != nil || count < 1 || (name != "" && name != tape.Stocks && name != tape.Options) {
		http.Error(w, "want a market, or none for both, and a count of events from 1 on", http.StatusBadRequest)
		return
	}
	emitted := struct {
		Stocks  int `json:"stocks"`
		Options int `json:"options"`
	}{}
	group, ctx := errgroup.WithContext(r.Context())
	emit := func(m *market.Market, sent *int) {
		group.Go(func() (err error) {
			*sent, err = m.Emit(ctx, count)
			return err
		})
	}
	if name != tape.Options {
		emit(s.stocks, &emitted.Stocks)
	}
	if name != tape.Stocks {
		emit(s.options, &emitted.Options)
	}
	if err := errors.Join(group.Wait(), s.files.flush()); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer(w, emitted)
}

func (s *Simulator) markets(name tape.Market) []*market.Market {
	switch name {
	case tape.Stocks:
		return []*market.Market{s.stocks}
	case tape.Options:
		return []*market.Market{s.options}
	default:
		return []*market.Market{s.stocks, s.options}
	}
}
