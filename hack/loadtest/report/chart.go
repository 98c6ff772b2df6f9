package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"
	"unicode/utf8"
)

// Measures of a chart in user units; a unit is about a CSS pixel.
const (
	chartWidth  = 600
	chartHeight = 300
	left        = 84 // of the plot: room for the labels of y
	right       = 16
	top         = 12
	bottom      = 50
	charWidth   = 7 // of a label, at most
	labelSpace  = 8 // between two labels
)

// point of a line. A y that is not a number interrupts it.
type point struct{ x, y float64 }

// line of a chart.
type line struct {
	Name   string
	points []point
}

// chart has lines over one x. Its axes are named with their units.
type chart struct {
	Title  string
	Note   string
	id     string
	xLabel string
	yLabel string
	x, y   scale
	Lines  []line
}

// maxLines is how many lines a chart has at most: the colours there are.
const maxLines = 6

// Empty reports whether there is nothing to draw.
func (c chart) Empty() bool { return len(c.Lines) == 0 }

// SVG draws the chart.
func (c chart) SVG() template.HTML {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-labelledby="%s-t">`, chartWidth, chartHeight, c.id)
	fmt.Fprintf(&b, `<title id="%s-t">%s: %s by %s</title>`, c.id, html.EscapeString(c.Title), html.EscapeString(c.yLabel), html.EscapeString(c.xLabel))
	c.drawAxes(&b)
	for i, l := range c.Lines {
		c.drawLine(&b, i, l)
	}
	b.WriteString(`</svg>`)
	return template.HTML(b.String()) //nolint:gosec // the only text that is not our own is escaped
}

func (c chart) placeX(x float64) float64 {
	return left + c.x.at(x)*(chartWidth-left-right)
}

func (c chart) placeY(y float64) float64 {
	return chartHeight - bottom - c.y.at(y)*(chartHeight-top-bottom)
}

func (c chart) drawAxes(b *strings.Builder) {
	for _, t := range c.y.ticks {
		y := c.placeY(t.value)
		fmt.Fprintf(b, `<path class="grid" d="M%d %.1fH%d"/>`, left, y, chartWidth-right)
		fmt.Fprintf(b, `<text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`, left-8, y+4, t.label)
	}
	free := 0.0 // where the next label may begin
	for _, t := range c.x.ticks {
		x := c.placeX(t.value)
		half := float64(charWidth*utf8.RuneCountInString(t.label)) / 2
		if x-half < free || x+half > chartWidth {
			continue
		}
		free = x + half + labelSpace
		fmt.Fprintf(b, `<path class="grid" d="M%.1f %dV%d"/>`, x, top, chartHeight-bottom)
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>`, x, chartHeight-bottom+21, t.label)
	}
	fmt.Fprintf(b, `<path class="axis" d="M%d %dV%dH%d"/>`, left, top, chartHeight-bottom, chartWidth-right)
	fmt.Fprintf(b, `<text class="label" x="%d" y="%d" text-anchor="middle">%s</text>`,
		(left+chartWidth-right)/2, chartHeight-8, html.EscapeString(c.xLabel))
	fmt.Fprintf(b, `<text class="label" transform="translate(13 %d) rotate(-90)" text-anchor="middle">%s</text>`,
		(top+chartHeight-bottom)/2, html.EscapeString(c.yLabel))
}

// drawLine draws a line; a point between two interruptions is a dot.
func (c chart) drawLine(b *strings.Builder, i int, l line) {
	var path strings.Builder
	var dots []point
	length := 0
	for j := 0; j <= len(l.points); j++ {
		if j == len(l.points) || math.IsNaN(l.points[j].y) {
			if length == 1 {
				dots = append(dots, l.points[j-1])
			}
			length = 0
			continue
		}
		command := "L"
		if length == 0 {
			command = "M"
		}
		fmt.Fprintf(&path, "%s%.1f %.1f", command, c.placeX(l.points[j].x), c.placeY(l.points[j].y))
		length++
	}
	fmt.Fprintf(b, `<path class="line c%d" d="%s"/>`, i, path.String())
	for _, dot := range dots {
		fmt.Fprintf(b, `<circle class="dot d%d" cx="%.1f" cy="%.1f" r="3"/>`, i, c.placeX(dot.x), c.placeY(dot.y))
	}
}

// highest y of the lines.
func highest(lines []line) float64 {
	most := 0.0
	for _, l := range lines {
		for _, p := range l.points {
			if p.y > most {
				most = p.y
			}
		}
	}
	return most
}

// lowest y of the lines that is not zero.
func lowest(lines []line) float64 {
	least := math.Inf(1)
	for _, l := range lines {
		for _, p := range l.points {
			if p.y > 0 && p.y < least {
				least = p.y
			}
		}
	}
	return least
}
