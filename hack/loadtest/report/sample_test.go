package report

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

var start = time.Date(2026, 11, 20, 14, 30, 0, 0, time.UTC)

// worker plays a run of 90 seconds: 7,500 clients connect within 20 s, get
// events in bursts, some fail or are slow, and a rollout at 60 s takes a
// fifth of the connections along. The same seed gives the same figures.
type worker struct {
	*tally.Tally
	rng     *rand.Rand
	samples bool // the server, that takes the connections of both workers
	ready   int
	own     time.Duration
	edge    tally.ServerUsed
	feed    tally.ServerUsed
}

func newWorker(name string, seed uint64) *worker {
	return &worker{
		Tally: tally.New(tally.Options{
			Run: tally.Run{
				Scenario: "stream", Start: start, Targets: []string{"10.0.0.7:8080", "10.0.0.8:8080"}, Wanted: 7500, Stamp: "ts",
				Parameters: []tally.Parameter{
					{Name: "ramp", Value: "linear, 20 s"}, {Name: "subscriptions", Value: "20 of 2,000 topics each, Zipf 0.8"},
					{Name: "hold", Value: "70 s"}, {Name: "keys", Value: "from a file: 15,000"}, {Name: "compression", Value: "off"},
					{Name: "source addresses", Value: "127.0.0.2-127.0.0.5"},
				},
			},
			Tester: name, Cores: 1,
		}),
		rng: rand.New(rand.NewPCG(seed, 1)), samples: seed == 0,
		edge: tally.ServerUsed{RSS: 31 << 20}, feed: tally.ServerUsed{RSS: 42 << 20},
	}
}

// around is a log-normal duration with that median.
func (w *worker) around(median time.Duration, spread float64) time.Duration {
	return time.Duration(float64(median) * math.Exp(spread*w.rng.NormFloat64()))
}

func (w *worker) connect(median time.Duration) {
	connected := w.around(median, 0.5)
	w.Connected(connected)
	upgraded := connected + w.around(3*median, 0.4)
	w.Upgraded(upgraded)
	if w.rng.IntN(800) == 0 {
		w.Closed(tally.Close{Stage: "auth", By: "server", Reason: "duplicate_connection", Code: 4409})
		return
	}
	w.Ready(upgraded + w.around(5*median, 0.4))
	w.ready++
}

func (w *worker) second(i int) {
	at := start.Add(time.Duration(i) * time.Second)
	w.Advance(at.UnixNano())
	switch {
	case i < 20:
		for range 375 {
			w.connect(800 * time.Microsecond)
		}
		if i == 12 {
			for range 37 {
				w.Closed(tally.Close{Stage: "connect", By: "network", Reason: "timeout"})
				w.Closed(tally.Close{Stage: "upgrade", By: "server", Reason: "refused", HTTP: 429})
			}
		}
	case i == 60:
		for range 1500 {
			w.Closed(tally.Close{Stage: "live", By: "server", Reason: "draining", Code: 1012})
			w.ready--
			if w.rng.IntN(3) == 0 {
				w.Gap(true)
			}
		}
	case i > 60 && i <= 70:
		for range 150 {
			w.connect(1200 * time.Microsecond)
			w.Reconnected(w.around(2*time.Second, 0.5))
		}
	case i%17 == 0:
		w.Closed(tally.Close{Stage: "live", By: "server", Reason: "slow_consumer", Code: 1008})
		w.ready--
	}
	median := 4 * time.Millisecond
	if i >= 60 && i < 66 {
		median = 30 * time.Millisecond
	}
	received := int(float64(w.ready) * (3 + 0.8*math.Sin(float64(i)/9) + 0.4*w.rng.Float64()))
	for range received {
		latency := w.around(median, 0.6)
		if w.rng.IntN(2000) == 0 {
			latency *= 12
		}
		w.Event(latency, 128+w.rng.IntN(20))
	}
	for range received / 3 {
		w.Frames(1, 3*138+6)
	}
	for range 200 {
		w.Lag(w.around(120*time.Microsecond, 0.7))
	}
	w.own += time.Duration(80+received/100) * time.Millisecond
	s := tally.Sample{At: at.Add(900 * time.Millisecond), Open: w.ready + w.rng.IntN(30), Opening: w.rng.IntN(30), CPU: w.own}
	if w.samples {
		w.edge.CPU += time.Duration(60+received/30) * time.Millisecond
		w.feed.CPU += 45 * time.Millisecond
		w.edge.RSS = 31<<20 + uint64(w.ready)*2*700 + uint64(w.rng.IntN(300_000))
		s.Servers = map[string]tally.ServerUsed{"edge (pid 4711)": w.edge, "fanout (pid 4712)": w.feed}
	}
	w.Sample(s)
}

// sampleResult is a result like those of real runs.
func sampleResult() (tally.Result, error) {
	var results []tally.Result
	const seconds = 90
	for i, name := range []string{"worker-0", "worker-1"} {
		w := newWorker(name, uint64(i))
		for second := range seconds {
			w.second(second)
		}
		for range w.ready {
			w.Closed(tally.Close{Stage: "live", By: "us", Reason: "done", Code: 1000})
		}
		w.Loss(tally.Loss{
			Judged: true, Expected: 2_000_000, Received: 1_998_120, Missing: 3, MissingAnnounced: 1877, Duplicates: 0, Disordered: 0,
			Topics: []tally.TopicLoss{{Topic: "T.AAPL", Expected: 41_000, Missing: 2, MissingAnnounced: 77}, {Topic: "Q.MSFT", Expected: 80_100, Missing: 1, MissingAnnounced: 140}},
		})
		results = append(results, w.Result(start.Add(seconds*time.Second)))
	}
	r, err := tally.Merge(results...)
	if err != nil {
		return tally.Result{}, err
	}
	var thresholds []tally.Threshold
	for _, text := range []string{"p99>100ms", "ready<14000", "missing>0", "closes.1008>20", "saturated>0"} {
		threshold, err := tally.ParseThreshold(text)
		if err != nil {
			return tally.Result{}, err
		}
		thresholds = append(thresholds, threshold)
	}
	r.Thresholds = r.Judge(thresholds)
	return r, nil
}

// bareResult is a run of a second in which nothing came of anything.
func bareResult() tally.Result {
	return tally.New(tally.Options{Run: tally.Run{Scenario: "idle", Start: start, Targets: []string{"127.0.0.1:8080"}, Wanted: 1}, Tester: "worker-0", Cores: 1}).
		Result(start.Add(time.Second))
}

// crowdedResult has what takes the most room: large figures, long names, and
// every warning.
func crowdedResult() tally.Result {
	y := tally.New(tally.Options{
		Run:    tally.Run{Scenario: "soak", Start: start, Targets: []string{"edge-0.edge.relay.svc.cluster.local:8080"}, Wanted: 1_200_000, Stamp: "ts"},
		Tester: "worker-with-a-long-name-0", Cores: 64,
	})
	servers := map[string]tally.ServerUsed{}
	for i := range 8_000 {
		at := start.Add(time.Duration(i) * time.Second)
		for _, name := range []string{"edge-0", "edge-1", "edge-2", "edge-3", "edge-4", "edge-5", "a-process-with-a-long-name-without-spaces-on-some.machine.example.org (pid 4194303)"} {
			servers[name] = tally.ServerUsed{CPU: time.Duration(i) * 63 * time.Second, RSS: 900 << 30}
		}
		y.Sample(tally.Sample{At: at, Open: 1_200_000, CPU: time.Duration(i) * 60 * time.Second, Servers: servers})
		y.Ready(time.Duration(i) * time.Millisecond)
		y.Event(-time.Second, 1<<40)
		y.Event(time.Duration(i)*100*time.Millisecond, 1)
		y.Lag(time.Minute)
		y.Closed(tally.Close{Stage: "subscribe", By: "network", Reason: "a_reason_" + string(rune('a'+i%26)), Code: 1000 + i%5, HTTP: 500})
	}
	return y.Result(start.Add(8_000 * time.Second))
}
