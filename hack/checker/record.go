package checker

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"slices"
	"sort"
	"time"

	"github.com/cutemarkets/relay/hack/truth"
)

// ErrTruth is the error of a truth whose sequence has a hole.
var ErrTruth = errors.New("checker: the truth has a hole in its sequence")

// record is the truth of one market without its bytes.
type record struct {
	events  []sent
	order   []int32 // numbers of events, by hash and then by number
	topics  []string
	outages []outage
	down    bool // the last outage has not ended
}

// sent is an event of the truth. Its number is its place in record.events.
type sent struct {
	hash  uint64
	at    int64 // unix ns
	seq   uint64
	topic int32 // number in record.topics
}

// outage is the time from the loss of a socket that carried data to the next
// subscription; to is zero if none followed.
type outage struct{ from, to time.Time }

// read takes in a truth, a record for each market.
func read(r *truth.Reader, seed maphash.Seed) (map[string]*record, error) {
	records := map[string]*record{}
	numbers := map[string]map[string]int32{}
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		m := records[line.Market]
		if m == nil {
			m = &record{}
			records[line.Market], numbers[line.Market] = m, map[string]int32{}
		}
		if err := m.add(line, numbers[line.Market], seed); err != nil {
			return nil, err
		}
	}
	for _, m := range records {
		m.index()
	}
	return records, nil
}

func (m *record) add(line truth.Line, numbers map[string]int32, seed maphash.Seed) error {
	switch line.Kind {
	case truth.Event:
		if n := len(m.events); n > 0 && line.Sequence != 1 && line.Sequence != m.events[n-1].seq+1 {
			return fmt.Errorf("%w: %s: %d follows %d", ErrTruth, line.Market, line.Sequence, m.events[n-1].seq)
		}
		topic, known := numbers[string(line.Topic)]
		if !known {
			topic = int32(len(m.topics))
			m.topics = append(m.topics, string(line.Topic))
			numbers[m.topics[topic]] = topic
		}
		m.events = append(m.events, sent{hash: maphash.Bytes(seed, line.Raw), at: line.At.UnixNano(), seq: line.Sequence, topic: topic})
	case truth.Down:
		if !m.down {
			m.outages, m.down = append(m.outages, outage{from: line.At}), true
		}
	case truth.Up:
		if m.down {
			m.outages[len(m.outages)-1].to, m.down = line.At, false
		}
	}
	return nil
}

func (m *record) index() {
	m.order = make([]int32, len(m.events))
	for i := range m.order {
		m.order[i] = int32(i)
	}
	slices.SortFunc(m.order, func(a, b int32) int {
		return cmp.Or(cmp.Compare(m.events[a].hash, m.events[b].hash), cmp.Compare(a, b))
	})
}

// same returns the numbers of all events with a hash, ascending.
func (m *record) same(hash uint64) []int32 {
	first := sort.Search(len(m.order), func(i int) bool { return m.events[m.order[i]].hash >= hash })
	end := first
	for end < len(m.order) && m.events[m.order[end]].hash == hash {
		end++
	}
	return m.order[first:end]
}

// after returns the number of the first event generated at or after a moment.
func (m *record) after(at time.Time) int {
	return sort.Search(len(m.events), func(i int) bool { return m.events[i].at >= at.UnixNano() })
}

func (m *record) time(number int) time.Time { return time.Unix(0, m.events[number].at) }
