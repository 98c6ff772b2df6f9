package judge

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cutemarkets/relay/hack/truth"
)

// ErrRuns is the error of a file that several runs of feedsim have written to.
var ErrRuns = errors.New("judge: the ground truth holds several runs; begin each with a new file")

// Truth is what was sent of one market: the numbers of the events of each topic.
// It takes 16 bytes for each event. It does not change, and is safe for
// concurrent use.
type Truth struct {
	exact    map[string][]uint64
	prefixes map[string][]uint64
	last     uint64
}

// ReadTruth reads the events of a market. The error is ErrRuns, or that of the
// reader.
func ReadTruth(r *truth.Reader, market string) (*Truth, error) {
	t := &Truth{exact: map[string][]uint64{}, prefixes: map[string][]uint64{}}
	for {
		line, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("judge: %w", err)
		}
		if line.Kind != truth.Event || line.Market != market {
			continue
		}
		if line.Sequence <= t.last {
			return nil, ErrRuns
		}
		t.last = line.Sequence
		topic := string(line.Topic)
		prefix := prefixOf(topic)
		t.exact[topic] = append(t.exact[topic], line.Sequence)
		t.prefixes[prefix] = append(t.prefixes[prefix], line.Sequence)
	}
}

// Last is the number of the last event.
func (t *Truth) Last() uint64 { return t.last }

// Expected is how many events of the topics have a number from from to through.
// An event that several topics match counts once.
func (t *Truth) Expected(topics Topics, from, through uint64) uint64 {
	n := 0
	for _, topic := range topics.exact {
		n += between(t.exact[topic], from, through)
	}
	for _, prefix := range topics.wildcards {
		n += between(t.prefixes[prefix], from, through)
	}
	return uint64(n)
}

func between(numbers []uint64, from, through uint64) int {
	if through < from {
		return 0
	}
	first, _ := slices.BinarySearch(numbers, from)
	end, _ := slices.BinarySearch(numbers, through+1)
	return end - first
}

// MaxCounts is the highest number that Counts counts.
const MaxCounts = 1 << 26

// Counts is how often each event of a market came, over all connections, for
// the account by topic. The zero value is ready. It takes 4 bytes for each
// event. It is not safe for concurrent use.
type Counts struct{ times []uint32 }

// Add counts an event that an Account says is fresh. Numbers beyond MaxCounts
// are left out.
func (c *Counts) Add(n uint64) {
	if n > MaxCounts {
		return
	}
	if n >= uint64(len(c.times)) {
		c.times = append(c.times, make([]uint32, n+1-uint64(len(c.times)))...)
	}
	c.times[n]++
}

// Merge adds the counts of other connections.
func (c *Counts) Merge(other *Counts) {
	if len(other.times) > len(c.times) {
		c.times = append(c.times, make([]uint32, len(other.times)-len(c.times))...)
	}
	for n, times := range other.times {
		c.times[n] += times
	}
}

// TopicLoss is what became of the events of one topic, over all connections.
type TopicLoss struct {
	Topic    string
	Expected uint64 // without what was announced as missing
	Received uint64 // of what was not announced as missing: at most so many
}

// Missing is how many did not come and were not announced.
func (l TopicLoss) Missing() uint64 { return subtract(l.Expected, l.Received) }

// Coverage gathers who had to get what, for the account by topic.
type Coverage struct {
	// Static after construction.
	truth *Truth

	exact    map[string]map[uint64]int64 // steps of the number of connections, at event numbers
	prefixes map[string]map[uint64]int64
}

// NewCoverage begins with no connection.
func NewCoverage(t *Truth) *Coverage {
	return &Coverage{t, map[string]map[uint64]int64{}, map[string]map[uint64]int64{}}
}

// Add adds a connection, as for Account.Verdict.
func (c *Coverage) Add(a *Account, topics Topics, s Span) {
	from, through := a.span(s)
	if from == 0 || through == 0 {
		return
	}
	for _, topic := range topics.exact {
		cover(c.exact, topic, a, from, through)
	}
	for _, prefix := range topics.wildcards {
		cover(c.prefixes, prefix, a, from, through)
	}
}

func cover(all map[string]map[uint64]int64, name string, a *Account, from, through uint64) {
	steps := all[name]
	if steps == nil {
		steps = map[uint64]int64{}
		all[name] = steps
	}
	steps[from]++
	steps[through+1]--
	for _, h := range a.holesIn(from, through) {
		steps[h.after+1]--
		steps[h.before]++
	}
}

// ByTopic returns the topics with the most missing events, at most so many of
// them, the worst first. A topic is an exact one, also where connections have a
// wildcard.
func (c *Coverage) ByTopic(counts *Counts, most int) []TopicLoss {
	var out []TopicLoss
	shared := map[string]course{}
	for prefix, steps := range c.prefixes {
		shared[prefix] = newCourse(steps)
	}
	for topic, numbers := range c.truth.exact {
		own, wide := newCourse(c.exact[topic]), shared[prefixOf(topic)]
		loss := TopicLoss{Topic: topic}
		for _, n := range numbers {
			expected := uint64(own.at(n) + wide.at(n))
			loss.Expected += expected
			if n < uint64(len(counts.times)) {
				loss.Received += min(uint64(counts.times[n]), expected)
			}
		}
		if loss.Expected > 0 {
			out = append(out, loss)
		}
	}
	slices.SortFunc(out, func(a, b TopicLoss) int {
		if a.Missing() != b.Missing() {
			return int(min(b.Missing(), 1<<62)) - int(min(a.Missing(), 1<<62))
		}
		return strings.Compare(a.Topic, b.Topic)
	})
	return out[:min(len(out), most)]
}

// course is the number of connections over the event numbers. It is asked for
// rising numbers; a copy begins anew.
type course struct {
	numbers []uint64
	steps   map[uint64]int64
	next    int
	value   int64
}

func newCourse(steps map[uint64]int64) course {
	c := course{steps: steps}
	for n := range steps {
		c.numbers = append(c.numbers, n)
	}
	slices.Sort(c.numbers)
	return c
}

func (c *course) at(n uint64) int64 {
	for c.next < len(c.numbers) && c.numbers[c.next] <= n {
		c.value += c.steps[c.numbers[c.next]]
		c.next++
	}
	return c.value
}
