// Package shape generates the traffic that edges and floors are compared under:
// who subscribes to what, which topic each event is of, and the events'
// bytes. The same shape and number of connections give the same subscriptions
// and the same sequence of topics on every machine.
//
// The package is pure: no I/O, no clock, no goroutine, and nothing is queued.
package shape

import (
	"math"
	"slices"
	"sort"
	"strconv"
	"time"
)

// Shape is a kind of traffic.
type Shape struct {
	Name          string `json:"name"`
	Topics        int    `json:"topics"`
	PerConnection int    `json:"topics_per_connection"`
	Rate          int    `json:"events_per_second"`
	Burst         int    `json:"burst"` // events that come at the same moment; 1: evenly spread
	// Ballast is how many more events come at each moment, of a topic that nobody
	// names: a wildcard has them.
	Ballast int `json:"ballast,omitempty"`
}

// All are the shapes by which servers are compared.
var All = []Shape{
	{Name: "S1r10", Topics: 1, PerConnection: 1, Rate: 10, Burst: 1},
	{Name: "S2r95", Topics: 2000, PerConnection: 20, Rate: 95, Burst: 1},
	{Name: "S2b400", Topics: 2000, PerConnection: 20, Rate: 400, Burst: 20},
	{Name: "S2r400", Topics: 2000, PerConnection: 20, Rate: 400, Burst: 1},
	{Name: "S1r200", Topics: 1, PerConnection: 1, Rate: 200, Burst: 1},
}

// ByName returns the shape of All with a name.
func ByName(name string) (Shape, bool) {
	i := slices.IndexFunc(All, func(s Shape) bool { return s.Name == name })
	if i < 0 {
		return Shape{}, false
	}
	return All[i], true
}

// MaxTopics is how many topics have a name.
const MaxTopics = 10_000

// BallastTopic is the topic of Shape.Ballast.
const BallastTopic = MaxTopics - 1

// Wildcard subscribes to all topics.
const Wildcard = "T.*"

const (
	exponent         = 0.8 // of the Zipf distribution of topics
	subscriptionSeed = 42
	publishSeed      = 49
)

// Interval is the time between two moments at which events come.
func (s Shape) Interval() time.Duration {
	return time.Second * time.Duration(s.Burst) / time.Duration(s.Rate)
}

// Subscriptions returns the topics of each connection, without duplicates.
func (s Shape) Subscriptions(connections int) [][]int {
	z := newZipf(s.Topics, subscriptionSeed)
	out := make([][]int, connections)
	for i := range out {
		topics := make([]int, 0, s.PerConnection)
		for len(topics) < s.PerConnection {
			if topic := z.next(); !slices.Contains(topics, topic) {
				topics = append(topics, topic)
			}
		}
		out[i] = topics
	}
	return out
}

// FanOut counts the subscribers of each topic.
func (s Shape) FanOut(subscriptions [][]int) []int {
	out := make([]int, s.Topics)
	for _, topics := range subscriptions {
		for _, topic := range topics {
			out[topic]++
		}
	}
	return out
}

// Choice is the sequence of topics that are published.
type Choice struct{ zipf *zipf }

// Choice begins the sequence anew.
func (s Shape) Choice() Choice { return Choice{newZipf(s.Topics, publishSeed)} }

// Next is the topic of the next event.
func (c Choice) Next() int { return c.zipf.next() }

// zipf draws topics: topic i with weight (i+1)^-exponent.
type zipf struct {
	sums  []float64 // of the weights up to and with each topic
	state uint64
}

func newZipf(topics int, seed uint64) *zipf {
	z := &zipf{sums: make([]float64, topics), state: seed}
	sum := 0.0
	for i := range z.sums {
		sum += math.Pow(float64(i+1), -exponent)
		z.sums[i] = sum
	}
	return z
}

func (z *zipf) next() int {
	const bits = 53
	u := float64(splitmix64(&z.state)>>(64-bits)) / (1 << bits) * z.sums[len(z.sums)-1]
	return min(sort.Search(len(z.sums), func(i int) bool { return z.sums[i] > u }), len(z.sums)-1)
}

func splitmix64(state *uint64) uint64 {
	*state += 0x9e3779b97f4a7c15
	x := *state
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// SymbolSize is the length of a symbol, in bytes.
const SymbolSize = len("S0000")

// AppendSymbol appends the symbol of a topic.
func AppendSymbol(dst []byte, topic int) []byte {
	return append(dst, 'S', '0'+byte(topic/1000), '0'+byte(topic/100%10), '0'+byte(topic/10%10), '0'+byte(topic%10))
}

// ParseSymbol reads a symbol at the beginning of b.
func ParseSymbol(b []byte) (topic int, ok bool) {
	if len(b) < SymbolSize || b[0] != 'S' {
		return 0, false
	}
	for _, c := range b[1:SymbolSize] {
		if c < '0' || c > '9' {
			return 0, false
		}
		topic = topic*10 + int(c-'0')
	}
	return topic, true
}

// TopicList is the subscription to topics as clients send it.
func TopicList(topics []int) string {
	var out []byte
	for i, topic := range topics {
		if i > 0 {
			out = append(out, ',')
		}
		out = AppendSymbol(append(out, "T."...), topic)
	}
	return string(out)
}

// EventSize is the length of an event, in bytes.
const EventSize = 135

const (
	eventHead = `{"ev":"T","sym":"`
	eventBody = `","x":4,"i":"12345","z":3,"p":187.231,"s":100,"c":[14,41],"t":1700000000000,"q":`
	eventTail = `,"ts":`

	firstNumber = 1_000_000 // of seven digits
	numbers     = 9_000_000
	stampDigits = 19
)

// AppendEvent appends event number n of a run, of a topic, published at a time
// in unix ns.
func AppendEvent(dst []byte, topic, n int, at int64) []byte {
	dst = append(AppendSymbol(append(dst, eventHead...), topic), eventBody...)
	dst = strconv.AppendInt(dst, int64(firstNumber+n%numbers), 10)
	dst = strconv.AppendInt(append(dst, eventTail...), at, 10)
	return append(dst, '}')
}

// Stamp returns when an event was published, in unix ns.
func Stamp(event []byte) (at int64, ok bool) {
	if len(event) != EventSize {
		return 0, false
	}
	for _, c := range event[EventSize-1-stampDigits : EventSize-1] {
		at = at*10 + int64(c-'0')
	}
	return at, true
}
