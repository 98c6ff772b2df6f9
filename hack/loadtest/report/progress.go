package report

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// between is how often a line is written where there is no terminal.
const between = 5 * time.Second

// barWidth is that of a bar, in columns. No line is longer than 79.
const barWidth = 34

// Progress shows a run under way: bars that move on a terminal, and lines
// elsewhere. It is not safe for concurrent use.
type Progress struct {
	// Static after construction.
	out      io.Writer
	terminal bool
	planned  time.Duration

	// Owned by the caller's goroutine; not thread-safe.
	drawn int           // lines on the terminal
	next  time.Duration // when a line is due
}

// NewProgress returns the progress of a run that is planned to take so long
// (0: not known), for a terminal if out is one.
func NewProgress(out *os.File, planned time.Duration) *Progress {
	return newProgress(out, isatty.IsTerminal(out.Fd()), planned)
}

func newProgress(out io.Writer, terminal bool, planned time.Duration) *Progress {
	return &Progress{out: out, terminal: terminal, planned: planned}
}

// Show draws the state; call it about once a second. On a terminal it takes
// the place of what was drawn before.
func (p *Progress) Show(s tally.Snapshot) error {
	if p.terminal {
		return p.draw(s)
	}
	if s.Elapsed < p.next {
		return nil
	}
	p.next = s.Elapsed - s.Elapsed%between + between
	line := fmt.Sprintf("%s ready %d/%d opening %d failed %d lost %d", clock(s.Elapsed), s.Ready, s.Wanted, s.Opening, s.Failed, s.Lost)
	return p.write(line + ", " + flow(s) + "\n")
}

func (p *Progress) draw(s tally.Snapshot) error {
	time := "time   " + clock(s.Elapsed)
	if p.planned > 0 {
		time = fmt.Sprintf("time   %s %s of %s", bar(s.Elapsed.Seconds()/p.planned.Seconds()), clock(s.Elapsed), clock(p.planned))
	}
	ready := fmt.Sprintf("ready  %s of %s", number(s.Ready), number(s.Wanted))
	if s.Wanted > 0 {
		ready = fmt.Sprintf("ready  %s %s of %s", bar(float64(s.Ready)/float64(s.Wanted)), number(s.Ready), number(s.Wanted))
	}
	lines := []string{
		time,
		ready,
		fmt.Sprintf("       opening %s, failed %s, lost %s, gaps %s", number(s.Opening), number(s.Failed), number(s.Lost), number(s.GapsAnnounced+s.GapsUnannounced)),
		"       " + flow(s),
	}
	var text strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&text, "\x1b[%dA", p.drawn) // up to the first line
	}
	for _, line := range lines {
		text.WriteString("\r\x1b[K" + line + "\n") // over what was there
	}
	p.drawn = len(lines)
	return p.write(text.String())
}

func (p *Progress) write(text string) error {
	if _, err := io.WriteString(p.out, text); err != nil {
		return fmt.Errorf("report: showing the progress: %w", err)
	}
	return nil
}

// flow says what came in the last second.
func flow(s tally.Snapshot) string {
	step := float64(max(1, s.Step))
	text := significant(float64(s.Last.Events)/step) + " events/s, " + size(float64(s.Last.Bytes)/step) + "/s"
	if s.Last.Latency.Count() > 0 {
		text += ", p50 " + duration(s.Last.Latency.Percentile(50)) + ", p99 " + duration(s.Last.Latency.Percentile(99))
	}
	return text
}

func bar(part float64) string {
	full := int(barWidth * min(max(part, 0), 1))
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "]"
}
