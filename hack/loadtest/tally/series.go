package tally

import (
	"maps"
	"slices"
	"time"
)

// maxSeconds bounds a series: beyond it, points of twice the length are made.
const maxSeconds = 3600

// Second is one point of the series: what happened in a second of the wall
// clock, or in as many as Result.Step says.
type Second struct {
	At          int64            `json:"at"` // its beginning, in unix seconds
	Events      uint64           `json:"events,omitempty"`
	Bytes       uint64           `json:"bytes,omitempty"` // of the events
	BecameReady uint64           `json:"became_ready,omitempty"`
	Failed      uint64           `json:"failed,omitempty"` // connections that did not become ready
	Lost        uint64           `json:"lost,omitempty"`   // ready connections that ended, not by our own doing
	Ready       int64            `json:"ready"`            // connections, at its end
	Open        int64            `json:"open"`             // sockets, when last sampled
	Opening     int64            `json:"opening,omitempty"`
	Latency     Histogram        `json:"latency"`              // from the stamp of an event to its arrival
	LagMax      time.Duration    `json:"lag_max_ns,omitempty"` // how late the tester was at most
	CPU         time.Duration    `json:"cpu_ns,omitempty"`     // that testers used
	Servers     map[string]Usage `json:"servers,omitempty"`    // by name; only those sampled
}

// Usage is what a process of the server used in a second.
type Usage struct {
	CPU time.Duration `json:"cpu_ns"`
	RSS uint64        `json:"rss"` // bytes, when last sampled
}

// add counts what happened in both.
func (s Second) add(o Second) Second {
	s.Events += o.Events
	s.Bytes += o.Bytes
	s.BecameReady += o.BecameReady
	s.Failed += o.Failed
	s.Lost += o.Lost
	s.Latency = s.Latency.merged(o.Latency)
	s.LagMax = max(s.LagMax, o.LagMax)
	s.CPU += o.CPU
	return s
}

// followed is s and the point behind it, as one.
func (s Second) followed(next Second) Second {
	sum := s.add(next)
	sum.Ready, sum.Open, sum.Opening = next.Ready, next.Open, next.Opening
	sum.Servers = maps.Clone(s.Servers)
	for name, usage := range next.Servers {
		if sum.Servers == nil {
			sum.Servers = make(map[string]Usage)
		}
		sum.Servers[name] = Usage{CPU: sum.Servers[name].CPU + usage.CPU, RSS: usage.RSS}
	}
	return sum
}

// beside is s and the same second of another worker. A server that both
// sampled is one server.
func (s Second) beside(o Second) Second {
	sum := s.add(o)
	sum.Ready += o.Ready
	sum.Open += o.Open
	sum.Opening += o.Opening
	sum.Servers = maps.Clone(s.Servers)
	for name, usage := range o.Servers {
		if sum.Servers == nil {
			sum.Servers = make(map[string]Usage)
		}
		same := sum.Servers[name]
		sum.Servers[name] = Usage{CPU: max(same.CPU, usage.CPU), RSS: max(same.RSS, usage.RSS)}
	}
	return sum
}

// series has rising points of step seconds, each at a multiple of step.
type series struct {
	step    int64 // a power of two
	seconds []Second
}

// add appends the point that follows. A series that is full goes on with
// points of twice the length, once the next one can begin there.
func (s *series) add(point Second) {
	s.seconds = append(s.seconds, point)
	if len(s.seconds) >= maxSeconds && (point.At+s.step)%(2*s.step) == 0 {
		*s = s.coarser(2 * s.step)
	}
}

// coarser has points of step seconds, a multiple of those before.
func (s series) coarser(step int64) series {
	c := series{step: step}
	for _, point := range s.seconds {
		point.At -= point.At % step
		if last := len(c.seconds) - 1; last >= 0 && c.seconds[last].At == point.At {
			c.seconds[last] = c.seconds[last].followed(point)
			continue
		}
		c.seconds = append(c.seconds, point)
	}
	return c
}

// beside has the sum of both, second by second of the wall clock.
func (s series) beside(o series) series {
	step := max(s.step, o.step)
	byTime := make(map[int64]Second)
	for _, part := range []series{s.coarser(step), o.coarser(step)} {
		for _, point := range part.seconds {
			if there, ok := byTime[point.At]; ok {
				point = there.beside(point)
			}
			byTime[point.At] = point
		}
	}
	sum := series{step: step}
	for _, at := range slices.Sorted(maps.Keys(byTime)) {
		sum.seconds = append(sum.seconds, byTime[at])
	}
	for len(sum.seconds) > maxSeconds {
		sum = sum.coarser(2 * sum.step)
	}
	return sum
}
