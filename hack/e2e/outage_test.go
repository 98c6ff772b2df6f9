package e2e

import (
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/cluster"
)

// gaps counts the gap notices a socket gets until an event that came after a
// moment is followed by a quiet second.
func gaps(t *testing.T, c *client, until time.Duration) (notices []event, events int) {
	t.Helper()
	end := time.Now().Add(until)
	for time.Now().Before(end) {
		batch, err := c.events(until + patience)
		if err != nil {
			t.Fatalf("the socket must stay open: %v", err)
		}
		for _, e := range batch {
			switch {
			case e.Status == "gap":
				notices = append(notices, e)
			case e.Ev != "status":
				events++
			}
		}
	}
	return notices, events
}

func TestNoGapWithoutFault(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	for i, market := range []string{"stocks", "options"} {
		s := join(t, c.Info().Edges[i], market, expert(t, c, market))
		s.subscribe("T.*,AM.*")
		notices, events := gaps(t, s, 8*time.Second)
		if len(notices) != 0 || events == 0 {
			t.Errorf("%s: %d gap notices and %d events, want none and some: %v", market, len(notices), events, notices)
		}
	}
}

func TestOneGapPerOutage(t *testing.T) {
	t.Parallel()
	address, _, _ := startRedis(t)
	c := startCluster(t, cluster.Options{Redis: address})
	edges := c.Info().Edges

	type socket struct {
		*client
		market string
	}
	var sockets []socket
	for _, edge := range edges {
		for _, market := range []string{"stocks", "options"} {
			s := join(t, edge, market, expert(t, c, market))
			s.subscribe("T.*")
			s.await("an event", func(e event) bool { return e.Ev == "T" })
			sockets = append(sockets, socket{s, market})
		}
	}
	began := time.Now()
	post(t, c.Info().Feedsim+"/outage?market=stocks&for=3s")
	post(t, c.Info().Feedsim+"/outage?market=options&for=3s")

	eventually(t, "the status page shows the outage", func() bool { return status(t, edges[0]).Services["stream_stocks"].Status == "degraded" })
	late := join(t, edges[0], "stocks", expert(t, c, "stocks"))
	open := late.await("the open gap of a socket that came during the outage", func(e event) bool { return e.Status == "gap" })
	if open.Market != "stocks" || open.From == "" || open.To != nil {
		t.Errorf("notice of a gap that lasts: %s", open.raw)
	}
	late.subscribe("T.*")
	closing := late.await("the end of the gap", func(e event) bool { return e.Status == "gap" })
	if closing.To == nil {
		t.Errorf("notice of a gap that is over: %s", closing.raw)
	}

	for _, s := range sockets {
		s.await("a gap", func(e event) bool { return checkGap(t, e, s.market, began) })
		notices, events := gaps(t, s.client, 3*time.Second)
		if len(notices) != 0 || events == 0 {
			t.Errorf("%s: after the gap %d more notices and %d events, want none and some", s.market, len(notices), events)
		}
	}
	eventually(t, "the status page is ok again", func() bool { return status(t, edges[0]).Status == "ok" })
}

// checkGap tells whether e is a gap notice and checks its span.
func checkGap(t *testing.T, e event, market string, began time.Time) bool {
	t.Helper()
	if e.Status != "gap" {
		return false
	}
	if e.To == nil {
		t.Fatalf("an old socket got the notice of a gap that lasts: %s", e.raw)
	}
	from, err1 := time.Parse(time.RFC3339Nano, e.From)
	to, err2 := time.Parse(time.RFC3339Nano, *e.To)
	if err1 != nil || err2 != nil || e.Market != market {
		t.Fatalf("gap notice of %s: %s", market, e.raw)
	}
	if from.After(began.Add(200*time.Millisecond)) || to.Before(began.Add(3*time.Second)) {
		t.Errorf("the gap %s does not span the outage of 3 s that began at %s", e.raw, began.UTC().Format(time.RFC3339Nano))
	}
	return true
}
