package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

// Summary writes the result as text.
func Summary(w io.Writer, r tally.Result) error {
	var text strings.Builder
	for _, warning := range warnings(r) {
		fmt.Fprintf(&text, "WARNING: %s\n\n", warning)
	}
	all := append([]table{parameters(r)}, tables(r)...)
	for _, t := range append(all, thresholds(r)) {
		t.write(&text)
	}
	if _, err := io.WriteString(w, text.String()); err != nil {
		return fmt.Errorf("report: writing the summary: %w", err)
	}
	return nil
}

func (t table) write(text *strings.Builder) {
	fmt.Fprintf(text, "%s\n", strings.ToUpper(t.Title))
	rows := t.Rows
	if t.Head != nil && len(rows) > 0 {
		rows = append([][]string{t.Head}, rows...)
	}
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i < t.Left {
				line.WriteString("  " + cell + space)
			} else {
				line.WriteString("  " + space + cell)
			}
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	if t.Note != "" {
		fmt.Fprintf(text, "  %s\n", t.Note)
	}
	text.WriteByte('\n')
}
