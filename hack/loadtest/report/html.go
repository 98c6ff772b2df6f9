// Package report shows a load test: its progress while it runs, and its result
// as a summary in text and as one HTML page that needs nothing else, neither
// network nor scripts. Both have the same tables; the page has charts besides.
//
// It starts no goroutine, and holds nothing but the result it is given.
package report

import (
	_ "embed" // the page's template
	"fmt"
	"html/template"
	"io"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"percent": func(part float64) string { return fmt.Sprintf("%.1f", 100*part) },
	"bar":     func(t table, row int) float64 { return t.Bars[row] },
}).Parse(pageText))

// tile is one of the figures at the top of the page.
type tile struct {
	Name  string
	Value string
	Note  string
	Bad   bool
}

// page is what the template shows.
type page struct {
	Scenario    string
	Began       string
	Took        string
	Warnings    []string
	Tiles       []tile
	Percentiles toggled
	OverTime    toggled
	Charts      []chart
	Tables      []table
	Thresholds  table
	Parameters  table
}

// HTML writes the result as one page.
func HTML(w io.Writer, r tally.Result) error {
	err := pageTemplate.Execute(w, page{
		Scenario:    r.Scenario,
		Began:       r.Start.UTC().Format(time.RFC1123),
		Took:        took(r),
		Warnings:    warnings(r),
		Tiles:       tiles(r),
		Percentiles: latencyPercentiles(r),
		OverTime:    latencyOverTime(r),
		Charts:      overTime(r),
		Tables:      tables(r),
		Thresholds:  thresholds(r),
		Parameters:  parameters(r),
	})
	if err != nil {
		return fmt.Errorf("report: writing the page: %w", err)
	}
	return nil
}

func tiles(r tally.Result) []tile {
	all := []tile{
		{"Ready", number(r.ReadyPeak), "of " + number(r.Wanted) + " wanted", r.ReadyPeak < int64(r.Wanted)},
		{"Failed or lost", number(r.Failed + r.Lost), "connections", r.Failed+r.Lost > 0},
	}
	rate := tile{"Events", "none", "received", false}
	if perSecond, _, known := r.Rate(); known {
		rate.Value, rate.Note = significant(perSecond), "per second"
	}
	latency := tile{"Latency p99", "–", "not measured", false}
	if r.Event.Count() > 0 {
		latency.Value, latency.Note = duration(r.Event.Percentile(99)), "p50 "+duration(r.Event.Percentile(50))
	}
	lost := tile{"Loss", "–", "not judged", false}
	if l := r.Loss; l.Judged || l.Missing+l.MissingAnnounced > 0 {
		lost = tile{"Loss", number(l.Missing), "not announced; " + number(l.MissingAnnounced) + " in gaps", l.Missing > 0}
	}
	limits := tile{"Thresholds", "–", "none set", false}
	if n := len(r.Thresholds); n > 0 {
		crossed := 0
		for _, v := range r.Thresholds {
			if v.Crossed {
				crossed++
			}
		}
		limits = tile{"Thresholds", number(crossed) + " crossed", "of " + number(n), crossed > 0}
	}
	return append(all, rate, latency, lost, limits)
}
