package e2e

import (
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

const (
	pathRate  = 20_000 // of the tape: a frame of the vendor has a hundred events
	pathChunk = 5_000  // events under way at once
	pathBurst = 20_000 // events sent while the upstream is lost
	pathSeed  = 2
	// pathSilence is how long before a loss the last event may have been sent: the
	// gap begins before it, and may be a second longer than the outage.
	pathSilence = 200 * time.Millisecond
)

// pathSize is how many events TestPath sends and how often the stocks upstream is
// lost. Back-off doubles with each loss, so ten take more than a minute.
func pathSize() (events, outages int) {
	if raceEnabled {
		return 100_000, 3
	}
	return 1_000_000, 10
}

// TestPath loses the upstream again and again at random moments of a stream at
// full speed: every event comes once, in order and unaltered, or lies in an
// announced gap, of which there is one for each outage, not much longer than it.
// It has the processors for itself: what is late makes a gap longer.
func TestPath(t *testing.T) {
	events, outages := pathSize()
	p := startPath(t)
	t.Logf("seed %d", pathSeed)
	var done sync.WaitGroup
	done.Go(func() { p.run("options", events/10, 5) })
	p.run("stocks", events, outages)
	done.Wait()
	p.finish()
}

// TestPathWithoutFault sends as much and loses nothing. It runs before the tests
// that run side by side, for it takes all processors.
func TestPathWithoutFault(t *testing.T) {
	events, _ := pathSize()
	p := startPath(t)
	began := time.Now()
	p.run("stocks", events, 0)
	t.Logf("%.0f events/s", float64(events)/time.Since(began).Seconds())
	p.finish()
	for _, w := range p.all {
		if len(w.gaps) > 0 {
			t.Errorf("%s was told of %q", w.name, raws(w.gaps))
		}
	}
}

type path struct {
	*witnesses
	t *testing.T
}

func startPath(t *testing.T) *path {
	t.Helper()
	// By the other rule a connection without events counts later, and its gap is longer.
	s := startStage(t, cluster.Options{Rate: pathRate, Args: map[string][]string{"fanout": {"--upstream-on-limit=kick-oldest"}}})
	p := &path{witnesses: newWitnesses(s), t: t}
	exact := []string{"AM.*", markTopic}
	for i, ticker := range tape.Tickers(tape.Stocks, 200) {
		exact = append(exact, []string{"T.", "Q."}[i%2]+ticker)
	}
	edges := s.Info().Edges
	for i, who := range []struct{ market, topics string }{
		{"stocks", "T.*,T.AAPL,Q.*"}, {"stocks", strings.Join(exact, ",")}, {"stocks", "A.*,Q.AAPL,T.*,LULD.*"},
		{"options", "T.*,A.*,Q.O:SPY260515C00500000"},
	} {
		p.add(edges[i%len(edges)], who.market, len(p.of(who.market)), who.topics)
	}
	p.begin("stocks")
	p.begin("options")
	return p
}

// run sends events, and meanwhile drops the upstream at moments that follow from
// the seed.
func (p *path) run(market string, events, outages int) {
	random := rand.New(rand.NewPCG(pathSeed, uint64(len(market))))
	chunks := events/pathChunk + outages // for what an outage costs
	due := map[int]bool{}
	for len(due) < outages {
		due[random.IntN(chunks)] = true
	}
	lost, took := 0, pathSilence
	for chunk := range chunks {
		if !due[chunk] {
			began := time.Now()
			p.mark(market, pathChunk)
			took = time.Since(began)
			continue
		}
		var emitted sync.WaitGroup
		emitted.Go(func() { p.stage.emit(market, pathBurst) })
		timer := time.NewTimer(time.Duration(random.Float64() * float64(min(took*pathBurst/pathChunk, pathSilence))))
		<-timer.C
		p.stage.order("drop?market=%s", market)
		emitted.Wait()
		lost++
		p.awaitGaps(market, lost)
	}
	p.mark(market, 1)
}

func (p *path) finish() {
	p.t.Helper()
	p.leave()
	expectPerfect(p.t, p.stage.Cluster, p.ck, p.stage.truth)
}
