package e2e

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/cutemarkets/relay/hack/cluster"
)

// TestFeedCut cuts the streams between fanout and the edges while events flow,
// by closing their connections and by swallowing what they carry, for less than
// the ring goes back: nobody misses an event, gets one twice, or is told of a gap.
func TestFeedCut(t *testing.T) {
	t.Parallel()
	fanout, err := net.Listen("tcp", "127.0.0.1:0") // its port is free then
	if err != nil {
		t.Fatal(err)
	}
	address := fanout.Addr().String()
	if err := fanout.Close(); err != nil {
		t.Fatal(err)
	}
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "feed", "127.0.0.1:0", address)
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Stop)
	s := startStage(t, cluster.Options{Rate: 2000, Args: map[string][]string{
		"fanout": {"--listen=" + address}, "edge": {"--fanout-address=" + proxy.Listen},
	}})
	ws := newWitnesses(s)
	for n, edge := range s.Info().Edges {
		ws.add(edge, "stocks", n, "T.*,Q.*,"+markTopic)
	}
	ws.begin("stocks")
	time.Sleep(2 * time.Second) // who has just subscribed would be told of a gap, rightly
	for _, cut := range []func(){
		func() {
			proxy.Stop()
			time.Sleep(time.Second)
			if err := proxy.Start(); err != nil {
				t.Error(err)
			}
		},
		func() {
			for _, stream := range []string{"upstream", "downstream"} {
				if _, err := proxy.Toxics.AddToxicJson(strings.NewReader(`{"type":"timeout","stream":"` + stream + `","attributes":{"timeout":0}}`)); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(4 * time.Second)
			proxy.Toxics.ResetToxics(t.Context())
		},
	} {
		before := s.metric("fanout-0", "relay_fanout_resumes_total", `result="resumed"`, `market="stocks"`)
		var emitted sync.WaitGroup
		emitted.Go(func() { s.emit("stocks", 12_000) })
		cut()
		emitted.Wait()
		ws.mark("stocks", 1)
		if after := s.metric("fanout-0", "relay_fanout_resumes_total", `result="resumed"`, `market="stocks"`); after < before+2 {
			t.Errorf("%v streams resumed, want that of each edge", after-before)
		}
	}
	ws.leave()
	expectPerfect(t, s.Cluster, ws.ck, s.truth)
	for _, w := range ws.all {
		if len(w.gaps) > 0 {
			t.Errorf("%s was told of %q", w.name, strings.Join(raws(w.gaps), " "))
		}
	}
}
