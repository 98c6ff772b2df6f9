package edge

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/lock"
)

// holder is who holds a user's lock, for operators.
type holder struct {
	User       string    `json:"user"`
	Edge       string    `json:"edge"`
	Connection string    `json:"connection"`
	Since      time.Time `json:"since"`
	ExpiresMS  int64     `json:"expires_ms,omitempty"`
}

func holderOf(user string, h lock.Holder) holder {
	return holder{
		User: user, Edge: h.Edge, Connection: fmt.Sprintf("%x", h.Owner),
		Since: h.Since.UTC(), ExpiresMS: h.Expires.Milliseconds(),
	}
}

// locksPage tells operators who holds locks, at GET /locks of the operations
// listener: with ?user=ID the holder of that user's lock in any edge, otherwise
// all locks that this edge holds.
func (s *Service) locksPage(w http.ResponseWriter, r *http.Request) {
	var answer struct {
		Locks []holder `json:"locks"`
	}
	answer.Locks = []holder{}
	if user := r.URL.Query().Get("user"); user != "" {
		h, held, err := s.locks.Holder(r.Context(), user)
		if err != nil {
			s.telemetry.Logger.Warn("cannot tell who holds a lock", slog.Any("error", err))
			http.Error(w, "Redis does not tell: see the log of this edge", http.StatusServiceUnavailable)
			return
		}
		if held {
			answer.Locks = append(answer.Locks, holderOf(user, h))
		}
	} else {
		s.locks.Held(func(user string, h lock.Holder) { answer.Locks = append(answer.Locks, holderOf(user, h)) })
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // fails if the asker has gone
}
