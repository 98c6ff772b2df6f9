package feed

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	feedv1 "github.com/cutemarkets/relay/proto/feed/v1"
)

// recorder is a Sink that writes down what it gets, times relative to zero.
type recorder struct {
	zero   time.Time
	lines  []string
	events []string
}

func (r *recorder) at(t time.Time) string { return t.Sub(r.zero).String() }

func (r *recorder) Batch(b *feedv1.Batch) {
	for n := range b.GetEnds() {
		r.events = append(r.events, eventOf(b, n))
		r.lines = append(r.lines, eventOf(b, n))
	}
}
func (r *recorder) Gap(from, to time.Time) {
	r.lines = append(r.lines, fmt.Sprintf("gap %s %s", r.at(from), r.at(to)))
}
func (r *recorder) Down(since time.Time) { r.lines = append(r.lines, "down "+r.at(since)) }
func (r *recorder) Up(from, to time.Time) {
	r.lines = append(r.lines, fmt.Sprintf("up %s %s", r.at(from), r.at(to)))
}
func (r *recorder) TopicNotice(ids []uint32, p feedv1.TopicProblem) {
	r.lines = append(r.lines, fmt.Sprint("notice ", ids, p.Number()))
}

// eventOf checks that an event is the one of its sequence and names it.
func eventOf(b *feedv1.Batch, n int) string {
	from := uint32(0)
	if n > 0 {
		from = b.Ends[n-1]
	}
	payload := string(b.Payload[from:b.Ends[n]])
	want := fmt.Sprintf("%d:%d", b.Epoch.GetTerm(), b.FirstSequence+uint64(b.SequenceOffsets[n]))
	if payload != want || b.TopicIds[2*n] != uint32(b.FirstSequence+uint64(b.SequenceOffsets[n])) {
		panic("event " + payload + " delivered as " + want)
	}
	return payload
}

// batchOf makes a batch of an epoch over [first, last] with some of its events.
func batchOf(term, first, last uint64, sequences ...uint64) *feedv1.SubscribeResponse {
	b := &feedv1.Batch{Epoch: &feedv1.Epoch{Generation: 1, Term: term}, FirstSequence: first, LastSequence: last}
	for _, s := range sequences {
		b.Payload = fmt.Appendf(b.Payload, "%d:%d", term, s)
		b.Ends = append(b.Ends, uint32(len(b.Payload)))
		b.SequenceOffsets = append(b.SequenceOffsets, uint32(s-first))
		b.TopicIds = append(b.TopicIds, uint32(s), 0)
	}
	return &feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Batch{Batch: b}}
}

func allOf(term, first, last uint64) *feedv1.SubscribeResponse {
	var s []uint64
	for n := first; n <= last; n++ {
		s = append(s, n)
	}
	return batchOf(term, first, last, s...)
}

func beat(h *feedv1.Heartbeat) *feedv1.SubscribeResponse {
	return &feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Heartbeat{Heartbeat: h}}
}

func live(term, sequence uint64) *feedv1.SubscribeResponse {
	return beat(&feedv1.Heartbeat{Role: feedv1.Role_ROLE_LEADER, Epoch: &feedv1.Epoch{Generation: 1, Term: term},
		Sequence: sequence, Upstream: feedv1.UpstreamState_UPSTREAM_STATE_LIVE})
}

func dead(term, sequence uint64, since *timestamppb.Timestamp) *feedv1.SubscribeResponse {
	return beat(&feedv1.Heartbeat{Role: feedv1.Role_ROLE_LEADER, Epoch: &feedv1.Epoch{Generation: 1, Term: term},
		Sequence: sequence, Upstream: feedv1.UpstreamState_UPSTREAM_STATE_DOWN, DownSince: since})
}

func standby() *feedv1.SubscribeResponse {
	return beat(&feedv1.Heartbeat{Role: feedv1.Role_ROLE_STANDBY})
}

func gapOf(term, sequence uint64, from, to time.Time) *feedv1.SubscribeResponse {
	return &feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_Gap{Gap: &feedv1.Gap{
		Epoch: &feedv1.Epoch{Generation: 1, Term: term}, Sequence: sequence,
		From: timestamppb.New(from), To: timestamppb.New(to)}}}
}

func withoutEpoch(m *feedv1.SubscribeResponse) *feedv1.SubscribeResponse {
	if b := m.GetBatch(); b != nil {
		b.Epoch = nil
	}
	if h := m.GetHeartbeat(); h != nil {
		h.Epoch = nil
	}
	return m
}

func notice(ids ...uint32) *feedv1.SubscribeResponse {
	return &feedv1.SubscribeResponse{Message: &feedv1.SubscribeResponse_TopicNotice{TopicNotice: &feedv1.TopicNotice{
		TopicIds: ids, Problem: feedv1.TopicProblem_TOPIC_PROBLEM_NOT_AUTHORIZED}}}
}

// input of a table: a message of a stream, or nothing but time, or a break.
type arbiterInput struct {
	at     time.Duration
	stream uint64
	m      *feedv1.SubscribeResponse // nil: the stream ends, or for stream 0 a tick
	reject bool
}

func TestArbiter(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	zero := time.Date(2026, 11, 20, 15, 0, 0, 0, time.UTC)
	abs := zero.Add
	ts := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(abs(d)) }
	malformed := allOf(1, 6, 8)
	malformed.GetBatch().Ends[1] = 999
	late := allOf(1, 6, 8)
	late.GetBatch().BuiltUnixNs = abs(2 * s).UnixNano()
	begin := []arbiterInput{{at: s, stream: 1, m: live(1, 0)}, {at: s, stream: 1, m: allOf(1, 1, 5)}}
	const begun = "down 0s|gap 0s 1s|1:1|1:2|1:3|1:4|1:5"
	for name, c := range map[string]struct {
		inputs []arbiterInput
		want   string
	}{
		"start": {begin, begun},
		"start, upstream down at first": {[]arbiterInput{{at: s, stream: 1, m: dead(1, 0, nil)}, {at: 9 * s, stream: 1, m: live(1, 0)}},
			"down 0s|gap 0s 9s"},
		"contiguous, with heartbeats": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1, m: live(1, 7)},
			arbiterInput{at: 2 * s, stream: 1, m: batchOf(1, 8, 20, 9, 12)}, arbiterInput{at: 3 * s, stream: 1, m: live(1, 20)}),
			begun + "|1:9|1:12"},
		"hole by a batch": {append(slices.Clone(begin), arbiterInput{at: 4 * s, stream: 1, m: allOf(1, 7, 8)}),
			begun + "|gap 1s 4s|1:7|1:8"},
		"hole by the first heartbeat of a stream": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3 * s, stream: 2, m: live(1, 9)}, arbiterInput{at: 3 * s, stream: 2, m: allOf(1, 10, 10)}),
			begun + "|gap 1s 3s|1:10"},
		"resume with overlap": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3 * s, stream: 2, m: live(1, 3)}, arbiterInput{at: 3 * s, stream: 2, m: allOf(1, 4, 7)}),
			begun + "|1:6|1:7"},
		"resume, all of it known": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3 * s, stream: 2, m: live(1, 3)}, arbiterInput{at: 3 * s, stream: 2, m: allOf(1, 4, 5)}), begun},
		"gap of the leader": {append(slices.Clone(begin), arbiterInput{at: 9 * s, stream: 1, m: gapOf(1, 6, abs(5*s), abs(8*s))},
			arbiterInput{at: 9 * s, stream: 1, m: allOf(1, 7, 7)}), begun + "|gap 5s 8s|1:7"},
		"missed gap of the leader": {append(slices.Clone(begin), arbiterInput{at: 9 * s, stream: 1, m: allOf(1, 7, 7)}),
			begun + "|gap 1s 9s|1:7"},
		"upstream lost and back, gap first": {append(slices.Clone(begin), arbiterInput{at: 3 * s, stream: 1, m: dead(1, 5, ts(2*s))},
			arbiterInput{at: 4 * s, stream: 1, m: dead(1, 5, ts(2*s))}, arbiterInput{at: 5 * s, stream: 1, m: gapOf(1, 6, abs(2*s), abs(5*s))},
			arbiterInput{at: 5 * s, stream: 1, m: live(1, 6)}, arbiterInput{at: 6 * s, stream: 1, m: allOf(1, 7, 7)}),
			begun + "|down 2s|gap 2s 5s|1:7"},
		"upstream lost and back, heartbeat first": {append(slices.Clone(begin), arbiterInput{at: 3 * s, stream: 1, m: dead(1, 5, ts(2*s))},
			arbiterInput{at: 5 * s, stream: 1, m: live(1, 5)}, arbiterInput{at: 5 * s, stream: 1, m: gapOf(1, 6, abs(2*s), abs(5*s))},
			arbiterInput{at: 6 * s, stream: 1, m: allOf(1, 7, 7)}),
			begun + "|down 2s|gap 2s 5s|1:7"},
		"stream lost while the upstream is down": {append(slices.Clone(begin), arbiterInput{at: 3 * s, stream: 1, m: dead(1, 5, ts(2*s))},
			arbiterInput{at: 4 * s, stream: 1}, arbiterInput{at: 9 * s, stream: 0}, arbiterInput{at: 10 * s, stream: 2, m: live(1, 8)}),
			begun + "|down 2s|gap 2s 10s"},
		"resume while the upstream is down": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3 * s, stream: 2, m: dead(1, 5, ts(2500*ms))}, arbiterInput{at: 3 * s, stream: 2, m: allOf(1, 6, 7)},
			arbiterInput{at: 6 * s, stream: 2, m: live(1, 7)}), begun + "|down 2.5s|1:6|1:7|gap 1s 6s"},
		"resume over an old gap while the upstream is down": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 4 * s, stream: 2, m: dead(1, 5, ts(3*s))}, arbiterInput{at: 4 * s, stream: 2, m: gapOf(1, 6, abs(1500*ms), abs(2*s))},
			arbiterInput{at: 4 * s, stream: 2, m: allOf(1, 7, 7)}, arbiterInput{at: 6 * s, stream: 2, m: live(1, 7)}),
			begun + "|down 3s|1:7|gap 1s 6s"},
		"silence": {append(slices.Clone(begin), arbiterInput{at: 4*s - 1, stream: 0}, arbiterInput{at: 4 * s, stream: 0},
			arbiterInput{at: 5 * s, stream: 0}, arbiterInput{at: 6 * s, stream: 1, m: live(1, 5)}), begun + "|down 1s|up 1s 6s"},
		"silence, and a hole": {append(slices.Clone(begin), arbiterInput{at: 4 * s, stream: 0},
			arbiterInput{at: 6 * s, stream: 1, m: allOf(1, 7, 7)}), begun + "|down 1s|gap 1s 6s|1:7"},
		"silence, and the upstream lost": {append(slices.Clone(begin), arbiterInput{at: 4 * s, stream: 0},
			arbiterInput{at: 5 * s, stream: 1, m: dead(1, 5, ts(2*s))}, arbiterInput{at: 6 * s, stream: 1, m: live(1, 5)}),
			begun + "|down 1s|gap 1s 6s"},
		"silence while the upstream is down": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1, m: dead(1, 5, ts(2*s))},
			arbiterInput{at: 6 * s, stream: 0}, arbiterInput{at: 7 * s, stream: 1, m: live(1, 5)}), begun + "|down 2s|gap 2s 7s"},
		"silence, and a resume": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1}, arbiterInput{at: 4 * s, stream: 0},
			arbiterInput{at: 5 * s, stream: 2, m: live(1, 3)}, arbiterInput{at: 5 * s, stream: 2, m: allOf(1, 4, 7)},
			arbiterInput{at: 6 * s, stream: 2, m: live(1, 7)}, arbiterInput{at: 7 * s, stream: 2, m: live(1, 7)}),
			begun + "|down 1s|1:6|1:7|up 1s 6s"},
		"silence, and a resume that breaks": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1}, arbiterInput{at: 4 * s, stream: 0},
			arbiterInput{at: 5 * s, stream: 2, m: live(1, 5)}, arbiterInput{at: 5 * s, stream: 2, m: allOf(1, 6, 6)}, arbiterInput{at: 6 * s, stream: 2},
			arbiterInput{at: 7 * s, stream: 3, m: live(1, 8)}, arbiterInput{at: 7 * s, stream: 3, m: live(1, 8)}), begun + "|down 1s|1:6|gap 1s 7s"},
		"resume is through": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3 * s, stream: 2, m: live(1, 3)}, arbiterInput{at: 3 * s, stream: 2, m: allOf(1, 4, 7)},
			arbiterInput{at: 3 * s, stream: 2, m: live(1, 7)}, arbiterInput{at: 4 * s, stream: 2, m: live(1, 7)}), begun + "|1:6|1:7|up 1s 3s"},
		"a gap in what a resume repeats": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3500 * ms, stream: 2, m: live(1, 5)}, arbiterInput{at: 3500 * ms, stream: 2, m: gapOf(1, 6, abs(2500*ms), abs(2800*ms))},
			arbiterInput{at: 3500 * ms, stream: 2, m: allOf(1, 7, 7)}, arbiterInput{at: 3600 * ms, stream: 2, m: live(1, 7)}),
			begun + "|gap 2.5s 2.8s|1:7|up 1s 3.6s"},
		"a gap in what a resume repeats that breaks": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3500 * ms, stream: 2, m: live(1, 5)}, arbiterInput{at: 3500 * ms, stream: 2, m: gapOf(1, 6, abs(2500*ms), abs(2800*ms))},
			arbiterInput{at: 3600 * ms, stream: 2}, arbiterInput{at: 4 * s, stream: 3, m: live(1, 6)}, arbiterInput{at: 4 * s, stream: 3, m: live(1, 6)}),
			begun + "|gap 2.5s 2.8s|up 1s 4s"},
		"a gap in what a resume repeats, longer than the break": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3500 * ms, stream: 2, m: live(1, 5)}, arbiterInput{at: 3500 * ms, stream: 2, m: gapOf(1, 6, abs(500*ms), abs(3400*ms))},
			arbiterInput{at: 3600 * ms, stream: 2, m: live(1, 6)}), begun + "|gap 500ms 3.4s|up 3.4s 3.6s"},
		"the upstream is lost before a resume is through": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3500 * ms, stream: 2, m: live(1, 5)}, arbiterInput{at: 3900 * ms, stream: 2, m: dead(1, 5, ts(3800*ms))},
			arbiterInput{at: 6 * s, stream: 2, m: gapOf(1, 6, abs(3800*ms), abs(6*s))}, arbiterInput{at: 7 * s, stream: 2, m: live(1, 6)}),
			begun + "|down 1s|gap 1s 6s"},
		"the upstream is lost before a resume and back when it is through": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3500 * ms, stream: 2, m: dead(1, 5, ts(3200*ms))}, arbiterInput{at: 4 * s, stream: 2, m: live(1, 5)}),
			begun + "|down 3.2s|gap 1s 4s"},
		"the upstream is lost before a resume and back in it": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1},
			arbiterInput{at: 3500 * ms, stream: 2, m: dead(1, 5, ts(3200*ms))}, arbiterInput{at: 4 * s, stream: 2, m: gapOf(1, 6, abs(3200*ms), abs(4*s))},
			arbiterInput{at: 4 * s, stream: 2, m: live(1, 6)}), begun + "|down 3.2s|gap 3.2s 4s|up 1s 4s"},
		"standbys alone": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1, m: standby()},
			arbiterInput{at: 4 * s, stream: 0}), begun + "|down 1s"},
		"newer epoch": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 2, m: dead(2, 0, nil)},
			arbiterInput{at: 2 * s, stream: 1, m: allOf(1, 6, 6)}, arbiterInput{at: 3 * s, stream: 2, m: live(2, 0)},
			arbiterInput{at: 3 * s, stream: 1, m: allOf(1, 7, 7)}, arbiterInput{at: 3 * s, stream: 1, m: live(1, 7)},
			arbiterInput{at: 3 * s, stream: 2, m: allOf(2, 1, 2)}), begun + "|1:6|gap 1.5s 3s|2:1|2:2"},
		"newer epoch, its batch first": {append(slices.Clone(begin), arbiterInput{at: 3 * s, stream: 2, m: allOf(2, 4, 5)}),
			begun + "|gap 1s 3s|2:4|2:5"},
		"newer epoch, a batch before its upstream is live": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 2, m: dead(2, 0, nil)},
			arbiterInput{at: 2 * s, stream: 2, m: allOf(2, 1, 2)}, arbiterInput{at: 3 * s, stream: 2, m: live(2, 2)},
			arbiterInput{at: 3 * s, stream: 2, m: allOf(2, 3, 3)}), begun + "|gap 1s 3s|2:3"},
		"hole behind a batch that was long on its way": {append(slices.Clone(begin), arbiterInput{at: 10 * s, stream: 1, m: late},
			arbiterInput{at: 11 * s, stream: 1, m: allOf(1, 12, 12)}), begun + "|1:6|1:7|1:8|gap 2s 11s|1:12"},
		"newer epoch, its gap first": {append(slices.Clone(begin), arbiterInput{at: 3 * s, stream: 2, m: dead(2, 0, nil)},
			arbiterInput{at: 3 * s, stream: 2, m: gapOf(2, 1, abs(2*s), abs(3*s))}, arbiterInput{at: 3 * s, stream: 2, m: live(2, 1)},
			arbiterInput{at: 3 * s, stream: 2, m: allOf(2, 2, 2)}), begun + "|gap 1s 3s|2:2"},
		"newer epoch after silence": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1}, arbiterInput{at: 6 * s, stream: 0},
			arbiterInput{at: 8 * s, stream: 2, m: live(2, 0)}), begun + "|down 1s|gap 1s 8s"},
		"leader stands down, standby promoted": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 2, m: standby()},
			arbiterInput{at: 3 * s, stream: 1, m: dead(1, 5, ts(2500*ms))}, arbiterInput{at: 3 * s, stream: 1, m: standby()},
			arbiterInput{at: 3 * s, stream: 1}, arbiterInput{at: 4 * s, stream: 2, m: dead(2, 0, nil)}, arbiterInput{at: 5 * s, stream: 2, m: live(2, 0)},
			arbiterInput{at: 5 * s, stream: 2, m: allOf(2, 1, 2)}), begun + "|down 2.5s|gap 2.5s 5s|2:1|2:2"},
		"leader dies, standby promoted at once": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 2, m: standby()},
			arbiterInput{at: 2 * s, stream: 1}, arbiterInput{at: 3 * s, stream: 2, m: dead(2, 0, nil)}, arbiterInput{at: 3500 * ms, stream: 2, m: live(2, 0)},
			arbiterInput{at: 4 * s, stream: 2, m: allOf(2, 1, 1)}), begun + "|gap 1s 3.5s|2:1"},
		"leader dies, standby promoted later": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 2, m: standby()},
			arbiterInput{at: 2 * s, stream: 1}, arbiterInput{at: 4 * s, stream: 0}, arbiterInput{at: 8 * s, stream: 2, m: dead(2, 0, nil)},
			arbiterInput{at: 9 * s, stream: 2, m: live(2, 0)}, arbiterInput{at: 9 * s, stream: 2, m: allOf(2, 1, 1)}), begun + "|down 1s|gap 1s 9s|2:1"},
		"a pod leads again": {append(slices.Clone(begin), arbiterInput{at: 3 * s, stream: 1, m: dead(1, 5, ts(2500*ms))},
			arbiterInput{at: 3 * s, stream: 1, m: standby()}, arbiterInput{at: 4 * s, stream: 1, m: dead(2, 0, nil)},
			arbiterInput{at: 5 * s, stream: 1, m: live(2, 0)}, arbiterInput{at: 5 * s, stream: 1, m: allOf(2, 1, 1)}), begun + "|down 2.5s|gap 2.5s 5s|2:1"},
		"the new leader is heard before the old one's last words": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 2, m: live(2, 0)},
			arbiterInput{at: 2 * s, stream: 2, m: allOf(2, 1, 1)}, arbiterInput{at: 2 * s, stream: 1, m: allOf(1, 6, 7)},
			arbiterInput{at: 2 * s, stream: 1, m: dead(1, 7, ts(1900*ms))}, arbiterInput{at: 2 * s, stream: 1, m: standby()},
			arbiterInput{at: 3 * s, stream: 2, m: allOf(2, 2, 2)}), begun + "|gap 1s 2s|2:1|2:2"},
		"malformed batch": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1, m: malformed},
			arbiterInput{at: 3 * s, stream: 1, m: allOf(1, 9, 9)}), begun + "|gap 1s 2s|1:9"},
		"notices": {append(slices.Clone(begin), arbiterInput{at: 2 * s, stream: 1, m: notice(3, 4)},
			arbiterInput{at: 2 * s, stream: 2, m: standby()}, arbiterInput{at: 2 * s, stream: 2, m: notice(5)}),
			begun + "|notice [3 4] 2"},
		"protocol broken": {append(slices.Clone(begin), arbiterInput{at: s, stream: 1, m: allOf(1, 5, 5), reject: true},
			arbiterInput{at: s, stream: 1, m: live(1, 3), reject: true}, arbiterInput{at: s, stream: 1, m: batchOf(1, 8, 7), reject: true},
			arbiterInput{at: s, stream: 1, m: withoutEpoch(batchOf(1, 6, 6)), reject: true},
			arbiterInput{at: s, stream: 2, m: standby()}, arbiterInput{at: s, stream: 2, m: withoutEpoch(live(1, 1)), reject: true},
			arbiterInput{at: s, stream: 1, m: allOf(1, 6, 6)}), begun + "|1:6"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &recorder{zero: zero}
			a := newArbiter(r, &stats{})
			a.start(zero)
			for n, in := range c.inputs {
				now := abs(in.at)
				switch {
				case in.stream == 0:
					a.tick(now)
				case in.m == nil:
					a.broken(in.stream)
				default:
					if a.streams[in.stream] == nil {
						a.opened(in.stream)
					}
					if ok := a.message(now, in.stream, in.m); ok == in.reject {
						t.Fatalf("input %d: accepted %v", n, ok)
					}
				}
			}
			if got := strings.Join(r.lines, "|"); got != c.want {
				t.Fatalf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}
