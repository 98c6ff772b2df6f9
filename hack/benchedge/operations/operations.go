// Package operations reads the operations listener of a service: its metrics,
// and, where it serves them (--pprof), its profiles.
//
// It starts no goroutine and holds nothing: each call is one request, and takes
// the service a moment to answer.
package operations

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// timeout is how long a service may take to answer.
const timeout = 30 * time.Second

// Listener is the operations listener of a service.
type Listener struct{ url string }

// New names a listener by its URL, http://HOST:PORT.
func New(url string) Listener { return Listener{url} }

// Metrics asks for all metrics. The error says what the service answered.
func (l Listener) Metrics(ctx context.Context) (Metrics, error) {
	page, err := l.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	return parse(page)
}

// Profile asks for a profile, such as heap or goroutine, in the form that
// `go tool pprof` reads. A heap profile is taken after a garbage collection.
func (l Listener) Profile(ctx context.Context, name string) ([]byte, error) {
	return l.get(ctx, "/debug/pprof/"+name+"?gc=1")
}

// Stacks asks for all goroutines, those with the same stack together, as text.
func (l Listener) Stacks(ctx context.Context) (string, error) {
	page, err := l.get(ctx, "/debug/pprof/goroutine?debug=1")
	return string(page), err
}

func (l Listener) get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+path, nil)
	if err != nil {
		return nil, fmt.Errorf("operations: %w", err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("operations: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("operations: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("operations: %s: status %d (profiles need --pprof)", path, res.StatusCode)
	}
	return body, nil
}

// Metrics are the metrics of a service at a moment.
type Metrics []value

// value is a line of the page.
type value struct {
	name, labels string
	is           float64
}

func parse(page []byte) (Metrics, error) {
	var m Metrics
	for line := range bytes.Lines(page) {
		text := strings.TrimSpace(string(line))
		if text == "" || text[0] == '#' {
			continue
		}
		// A label value may have spaces, what is behind the labels has not.
		space := strings.LastIndexByte(text, ' ')
		if space < 0 {
			return nil, fmt.Errorf("operations: a metric without a value: %s", text)
		}
		is, err := strconv.ParseFloat(text[space+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("operations: %s: %w", text, err)
		}
		name, labels, _ := strings.Cut(text[:space], "{")
		m = append(m, value{name, labels, is})
	}
	return m, nil
}

// Sum adds up a metric over its label values. Labels, such as
// `reason="draining"`, choose those that have them all. A metric that is not
// there is 0.
func (m Metrics) Sum(name string, labels ...string) float64 {
	sum := 0.0
	for _, v := range m {
		if v.name == name && v.has(labels) {
			sum += v.is
		}
	}
	return sum
}

// By adds up a metric for each value of a label.
func (m Metrics) By(name, label string) map[string]float64 {
	sums := map[string]float64{}
	for _, v := range m {
		if _, after, ok := strings.Cut(v.labels, label+`="`); ok && v.name == name {
			of, _, _ := strings.Cut(after, `"`)
			sums[of] += v.is
		}
	}
	return sums
}

func (v value) has(labels []string) bool {
	for _, label := range labels {
		if !strings.Contains(v.labels, label) {
			return false
		}
	}
	return true
}
