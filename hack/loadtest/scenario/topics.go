package scenario

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
)

// Topics says what the connections subscribe to: all of them to List, or each
// to some of the Symbols.
type Topics struct {
	List    string   // with commas between; "": none
	Symbols []string // the most popular first; none: List counts
	Prefix  string   // in front of each symbol, without the dot
	Each    int      // symbols of a connection
	Zipf    float64  // how steeply the popularity of symbols falls: the n-th is chosen as 1/n^Zipf; 0: all alike
}

// maxEach is how many topics a connection of a relay may have.
const maxEach = 1000

// chooser chooses the topics of each connection.
type chooser struct {
	topics  Topics
	weights []float64 // of the symbols, each added to those before
}

func (t Topics) chooser() (chooser, error) {
	c := chooser{topics: t}
	if len(t.Symbols) == 0 {
		return c, nil
	}
	var errs []error
	if t.List != "" {
		errs = append(errs, errors.New("--topics and --symbols exclude each other"))
	}
	if t.Each < 1 || t.Each > min(maxEach, len(t.Symbols)) {
		errs = append(errs, fmt.Errorf("--topics-per-connection is %d, must be from 1 to %d: a connection may have %d topics, and there are %d symbols",
			t.Each, min(maxEach, len(t.Symbols)), maxEach, len(t.Symbols)))
	}
	if !(t.Zipf >= 0 && t.Zipf <= 10) {
		errs = append(errs, fmt.Errorf("--zipf is %g, must be from 0 to 10", t.Zipf))
	}
	sum := 0.0
	for rank := range t.Symbols {
		sum += math.Pow(float64(rank+1), -t.Zipf)
		c.weights = append(c.weights, sum)
	}
	return c, errors.Join(errs...)
}

// tries is how often a symbol is drawn that a connection has already, before it
// takes the most popular one it has not.
const tries = 20

// list has the topics of a connection, always the same ones.
func (c chooser) list(connection int) string {
	t := c.topics
	if len(t.Symbols) == 0 {
		return t.List
	}
	random := rand.New(rand.NewPCG(uint64(connection), 1))
	ranks := make([]int, 0, t.Each)
	for len(ranks) < t.Each {
		rank := c.draw(random)
		for n := 0; n < tries && slices.Contains(ranks, rank); n++ {
			rank = c.draw(random)
		}
		if slices.Contains(ranks, rank) {
			rank = 0
			for slices.Contains(ranks, rank) {
				rank++
			}
		}
		ranks = append(ranks, rank)
	}
	topics := make([]string, 0, t.Each)
	for _, rank := range ranks {
		topics = append(topics, t.Prefix+"."+t.Symbols[rank])
	}
	return strings.Join(topics, ",")
}

// draw is the rank of a symbol, by its popularity.
func (c chooser) draw(random *rand.Rand) int {
	at := random.Float64() * c.weights[len(c.weights)-1]
	return min(sort.SearchFloat64s(c.weights, at), len(c.weights)-1)
}
