package judge

import (
	"maps"
	"slices"
	"strconv"
	"time"
)

// Figures are what one client saw in a phase.
type Figures struct {
	Streaming bool // has a socket, and had an event within Interruption

	Events     int64
	Announced  int64 // missing, covered by a notice that came before the next event
	Silent     int64 // missing, and nobody said so
	Away       int64 // missing because there was no socket
	Duplicates int64
	Disordered int64

	Silence    time.Duration // longest without an event on a socket that had one
	Notices    int           // gaps announced, with their end
	NoticeSpan time.Duration // longest of them
	Resume     time.Duration // longest from the end of a socket to the next event
	Restored   time.Duration // end of the last interruption, from the beginning of the phase

	Closes   map[int]int    // by code
	Refusals map[string]int // handshakes, by cause
}

func newFigures() Figures {
	return Figures{Closes: make(map[int]int), Refusals: make(map[string]int)}
}

func (f *Figures) clone() Figures {
	c := *f
	c.Closes, c.Refusals = maps.Clone(f.Closes), maps.Clone(f.Refusals)
	return c
}

// Summary is what all clients saw in a phase. Times are milliseconds.
type Summary struct {
	Phase     string `json:"phase"`
	LastedMS  int64  `json:"lasted_ms"`
	Clients   int    `json:"clients"`
	Streaming int    `json:"streaming"`

	Events     int64 `json:"events"`
	Announced  int64 `json:"missing_announced"`
	Silent     int64 `json:"missing_silently"`
	Away       int64 `json:"missing_while_away"`
	Duplicates int64 `json:"duplicates"`
	Disordered int64 `json:"disordered"`

	SilenceMaxMS    int64 `json:"silence_max_ms"`
	SilenceMedianMS int64 `json:"silence_median_ms"`
	Interrupted     int   `json:"interrupted"` // clients silent for Interruption or longer
	Told            int   `json:"told"`        // clients with a gap notice
	Notices         int   `json:"notices"`
	NoticeSpanMS    int64 `json:"notice_span_max_ms"`
	ResumeMaxMS     int64 `json:"resume_max_ms"`
	ResumeMedianMS  int64 `json:"resume_median_ms"` // of the clients that lost their socket
	RestoredMS      int64 `json:"restored_ms"`      // from the beginning of the phase until the last client was back

	Closes   map[string]int `json:"closes"`
	Refusals map[string]int `json:"refusals"`
}

// Sum adds up the clients of a phase that began at a time.
func Sum(phase string, began, now time.Time, all []Figures) Summary {
	s := Summary{
		Phase: phase, LastedMS: now.Sub(began).Milliseconds(), Clients: len(all),
		Closes: make(map[string]int), Refusals: make(map[string]int),
	}
	var silences, resumes []time.Duration
	for i := range all {
		f := &all[i]
		s.Events += f.Events
		s.Announced += f.Announced
		s.Silent += f.Silent
		s.Away += f.Away
		s.Duplicates += f.Duplicates
		s.Disordered += f.Disordered
		s.Notices += f.Notices
		s.Streaming += count(f.Streaming)
		s.Told += count(f.Notices > 0)
		s.Interrupted += count(f.Silence >= Interruption)
		s.NoticeSpanMS = max(s.NoticeSpanMS, f.NoticeSpan.Milliseconds())
		s.RestoredMS = max(s.RestoredMS, f.Restored.Milliseconds())
		silences = append(silences, f.Silence)
		if f.Resume > 0 {
			resumes = append(resumes, f.Resume)
		}
		for code, n := range f.Closes {
			s.Closes[strconv.Itoa(code)] += n
		}
		for why, n := range f.Refusals {
			s.Refusals[why] += n
		}
	}
	s.SilenceMedianMS, s.SilenceMaxMS = middleAndMost(silences)
	s.ResumeMedianMS, s.ResumeMaxMS = middleAndMost(resumes)
	return s
}

func count(is bool) int {
	if is {
		return 1
	}
	return 0
}

func middleAndMost(all []time.Duration) (middle, most int64) {
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2].Milliseconds(), all[len(all)-1].Milliseconds()
}
