package tally

import (
	"errors"
	"fmt"
	"slices"
)

// differs is the value of a parameter that workers do not have in common.
const differs = "(differs between workers)"

// Merge makes one result of those of several workers of the same run: counters
// and histograms are added, series second by second of the wall clock. Loss is
// judged only if each worker judged it. Verdicts are left out: judge the merged
// result.
func Merge(results ...Result) (Result, error) {
	if len(results) == 0 {
		return Result{}, errors.New("tally: no result to merge")
	}
	sum := results[0]
	// What Merge appends to or changes is not the caller's.
	sum.Targets = slices.Clone(sum.Targets)
	sum.Parameters = slices.Clone(sum.Parameters)
	sum.Testers = slices.Clone(sum.Testers)
	sum.Loss.Topics = slices.Clone(sum.Loss.Topics)
	sum.Thresholds = nil
	all := series{sum.Step, sum.Seconds}
	closes := countCloses(nil, sum.Closes)
	for _, r := range results[1:] {
		if err := compatible(sum, r); err != nil {
			return Result{}, err
		}
		if r.Start.Before(sum.Start) {
			sum.Start = r.Start
		}
		if r.End.After(sum.End) {
			sum.End = r.End
		}
		sum.Wanted += r.Wanted
		sum.Targets = append(sum.Targets, r.Targets...)
		sum.Parameters = common(sum.Parameters, r.Parameters)
		sum.count(r.Totals)
		sum.Connect = sum.Connect.merged(r.Connect)
		sum.Upgrade = sum.Upgrade.merged(r.Upgrade)
		sum.Ready = sum.Ready.merged(r.Ready)
		sum.Reconnect = sum.Reconnect.merged(r.Reconnect)
		sum.Event = sum.Event.merged(r.Event)
		sum.Lag = sum.Lag.merged(r.Lag)
		sum.Loss.add(r.Loss)
		sum.Testers = append(sum.Testers, r.Testers...)
		all = all.beside(series{r.Step, r.Seconds})
		closes = countCloses(closes, r.Closes)
	}
	slices.Sort(sum.Targets)
	sum.Targets = slices.Compact(sum.Targets)
	sum.Step, sum.Seconds = all.step, all.seconds
	sum.Closes = nil
	for c, count := range closes {
		sum.Closes = append(sum.Closes, CloseCount{c, count})
	}
	sum.settle()
	return sum, nil
}

// compatible refuses results that are not of one run.
func compatible(a, b Result) error {
	switch {
	case a.Schema != b.Schema:
		return fmt.Errorf("tally: results of schema %d and %d do not merge: use the same version of loadtest everywhere", a.Schema, b.Schema)
	case a.Scenario != b.Scenario:
		return fmt.Errorf("tally: results of the scenarios %q and %q do not merge", a.Scenario, b.Scenario)
	case a.Stamp != b.Stamp:
		return fmt.Errorf("tally: latencies from the stamps %q and %q do not merge", a.Stamp, b.Stamp)
	}
	for _, tester := range b.Testers {
		if slices.ContainsFunc(a.Testers, func(t Tester) bool { return t.Name == tester.Name }) {
			return fmt.Errorf("tally: two results of the tester %q: give each worker a name of its own, and merge each result once", tester.Name)
		}
	}
	return nil
}

func countCloses(counts map[Close]uint64, closes []CloseCount) map[Close]uint64 {
	if counts == nil {
		counts = make(map[Close]uint64)
	}
	for _, c := range closes {
		counts[c.Close] += c.Count
	}
	return counts
}

// common has the parameters of both, in the order of a.
func common(a, b []Parameter) []Parameter {
	for _, p := range b {
		i := slices.IndexFunc(a, func(there Parameter) bool { return there.Name == p.Name })
		switch {
		case i < 0:
			a = append(a, p)
		case a[i].Value != p.Value:
			a[i].Value = differs
		}
	}
	return a
}

func (l *Loss) add(o Loss) {
	l.Judged = l.Judged && o.Judged
	l.Expected += o.Expected
	l.Received += o.Received
	l.Missing += o.Missing
	l.MissingAnnounced += o.MissingAnnounced
	l.Duplicates += o.Duplicates
	l.Disordered += o.Disordered
	l.Misframed += o.Misframed
	for _, topic := range o.Topics {
		i := slices.IndexFunc(l.Topics, func(there TopicLoss) bool { return there.Topic == topic.Topic })
		if i < 0 {
			l.Topics = append(l.Topics, topic)
			continue
		}
		l.Topics[i].Expected += topic.Expected
		l.Topics[i].Missing += topic.Missing
		l.Topics[i].MissingAnnounced += topic.MissingAnnounced
	}
}
