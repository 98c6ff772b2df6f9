package checker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// ErrFault is what Report.Err returns, with the faults and examples.
var ErrFault = errors.New("checker: clients did not receive what was promised")

// Report is the result of Check.
type Report struct {
	Clients []ClientReport
	Total   Figures
}

// ClientReport is the result for one client.
type ClientReport struct {
	Name   string
	Market string
	Figures
	Examples []string // the first few faults of each kind
}

// Figures count events, except for Bytes and those about gaps.
type Figures struct {
	Expected int
	Received int
	Bytes    int64 // of the events received

	Altered           int // received, but their bytes were never sent
	Unasked           int // received without a subscription to their topic
	Duplicates        int // received more often than sent
	Disordered        int // received right behind one that was sent later
	DisorderedInTopic int // the same, looking at one topic at a time
	MissingInGaps     int // expected, not received, generated within an announced gap
	Missing           int // expected, not received, and not announced

	Gaps              int // announced
	Outages           int // that the client should have been told of, or was
	GapsUnfounded     int // gaps during which there was no outage
	GapsTooLong       int // gaps more than a second longer than the outage
	OutagesNotSpanned int // outages that no one gap covers from end to end
}

func (f *Figures) add(g Figures) {
	f.Expected += g.Expected
	f.Received += g.Received
	f.Bytes += g.Bytes
	f.Altered += g.Altered
	f.Unasked += g.Unasked
	f.Duplicates += g.Duplicates
	f.Disordered += g.Disordered
	f.DisorderedInTopic += g.DisorderedInTopic
	f.MissingInGaps += g.MissingInGaps
	f.Missing += g.Missing
	f.Gaps += g.Gaps
	f.Outages += g.Outages
	f.GapsUnfounded += g.GapsUnfounded
	f.GapsTooLong += g.GapsTooLong
	f.OutagesNotSpanned += g.OutagesNotSpanned
}

// faults names what breaks the promise, without counts that are zero.
func (f Figures) faults() []string {
	var faults []string
	for _, row := range []struct {
		count int
		what  string
	}{
		{f.Altered, "altered"},
		{f.Unasked, "not asked for"},
		{f.Duplicates, "duplicates"},
		{f.Disordered, "disordered"},
		{f.DisorderedInTopic, "disordered within a topic"},
		{f.Missing, "missing outside announced gaps"},
		{f.GapsUnfounded, "gaps without an outage"},
		{f.GapsTooLong, "gaps too long"},
		{f.OutagesNotSpanned, "outages not spanned by a gap"},
	} {
		if row.count != 0 {
			faults = append(faults, fmt.Sprintf("%d %s", row.count, row.what))
		}
	}
	if f.Gaps != f.Outages {
		faults = append(faults, fmt.Sprintf("%d gaps for %d outages", f.Gaps, f.Outages))
	}
	return faults
}

// Err returns nil if every client got what was promised: everything once, in
// order and unaltered, except for what was generated in an announced gap, and
// one gap for each outage, not much longer than it. Otherwise it is an ErrFault.
func (r Report) Err() error {
	var text strings.Builder
	for _, c := range r.Clients {
		if faults := c.faults(); len(faults) > 0 {
			fmt.Fprintf(&text, "\n%s (%s): %s\n\t%s", c.Name, c.Market, strings.Join(faults, ", "), strings.Join(c.Examples, "\n\t"))
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return fmt.Errorf("%w:%s", ErrFault, &text)
}

// String is a table of the clients, those with faults first, and the total.
func (r Report) String() string {
	const most = 20
	clients := slices.Clone(r.Clients)
	slices.SortStableFunc(clients, func(a, b ClientReport) int {
		return min(1, len(b.faults())) - min(1, len(a.faults()))
	})
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(table, "client\tmarket\texpected\treceived\tbytes\tmissing\tin gaps\taltered\tdisordered\tduplicates\tunasked\tgaps\toutages\t")
	row := func(name, market string, f Figures) {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, market, f.Expected, f.Received, f.Bytes,
			f.Missing, f.MissingInGaps, f.Altered, f.Disordered, f.Duplicates, f.Unasked, f.Gaps, f.Outages)
	}
	for _, c := range clients[:min(most, len(clients))] {
		row(c.Name, c.Market, c.Figures)
	}
	if len(clients) > most {
		var others Figures
		for _, c := range clients[most:] {
			others.add(c.Figures)
		}
		row(fmt.Sprintf("%d more", len(clients)-most), "", others)
	}
	row("total", "", r.Total)
	_ = table.Flush()
	if err := r.Err(); err != nil {
		text.WriteString(err.Error() + "\n")
	}
	return text.String()
}
