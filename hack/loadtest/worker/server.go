package worker

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cutemarkets/relay/hack/loadtest/tally"
)

const (
	// clockTicks is how many a second /proc counts CPU in.
	clockTicks = 100

	// answerTime is how long metrics may take: a sample is due each second.
	answerTime = 700 * time.Millisecond

	// maxMetrics bounds what is read of metrics, in bytes.
	maxMetrics = 16 << 20
)

// servers samples what processes of the server use.
type servers struct {
	// Static after construction.
	pids    []int
	metrics []string
	machine string
	client  *http.Client
}

func newServers(pids []int, metrics []string) *servers {
	machine, err := os.Hostname()
	if err != nil {
		machine = "localhost"
	}
	return &servers{pids: pids, metrics: metrics, machine: machine, client: &http.Client{Timeout: answerTime}}
}

// used is what each has used so far, by name. A server that does not answer, or
// has ended, is left out.
func (s *servers) used(ctx context.Context) map[string]tally.ServerUsed {
	var mu sync.Mutex
	all := make(map[string]tally.ServerUsed, len(s.pids)+len(s.metrics))
	for _, pid := range s.pids {
		if name, used, ok := process(pid); ok {
			all[fmt.Sprintf("%s[%d] on %s", name, pid, s.machine)] = used
		}
	}
	var scrapes sync.WaitGroup
	for _, address := range s.metrics {
		scrapes.Go(func() {
			used, ok := s.scrape(ctx, address)
			mu.Lock()
			defer mu.Unlock()
			if u, err := url.Parse(address); err == nil && ok {
				all[u.Host] = used
			}
		})
	}
	scrapes.Wait()
	return all
}

// process reads what a process of this machine has used.
func process(pid int) (name string, used tally.ServerUsed, ok bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", used, false
	}
	return parseStat(string(stat))
}

// parseStat takes the name, CPU and memory out of /proc/PID/stat.
func parseStat(stat string) (name string, used tally.ServerUsed, ok bool) {
	// The name stands in parentheses, and may have any character.
	start, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if start < 0 || end < start {
		return "", used, false
	}
	const user, system, resident = 11, 12, 21
	fields := strings.Fields(stat[end+1:])
	if len(fields) <= resident {
		return "", used, false
	}
	var numbers [3]int64
	for i, field := range []int{user, system, resident} {
		n, err := strconv.ParseInt(fields[field], 10, 64)
		if err != nil || n < 0 {
			return "", used, false
		}
		numbers[i] = n
	}
	used.CPU = time.Duration(numbers[0]+numbers[1]) * time.Second / clockTicks
	used.RSS = uint64(numbers[2]) * uint64(os.Getpagesize())
	return stat[start+1 : end], used, true
}

// scrape reads what a server says of itself.
func (s *servers) scrape(ctx context.Context, address string) (used tally.ServerUsed, ok bool) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return used, false
	}
	response, err := s.client.Do(request)
	if err != nil {
		return used, false
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return used, false
	}
	return parseMetrics(io.LimitReader(response.Body, maxMetrics))
}

// The names of what is read, with the space behind them.
var (
	cpuMetric = []byte("process_cpu_seconds_total ")
	rssMetric = []byte("process_resident_memory_bytes ")
)

// parseMetrics takes CPU and memory out of metrics in the Prometheus text format.
func parseMetrics(r io.Reader) (used tally.ServerUsed, ok bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxMetrics)
	found := 0
	for lines.Scan() {
		if rest, is := bytes.CutPrefix(lines.Bytes(), cpuMetric); is {
			if n, err := strconv.ParseFloat(string(rest), 64); err == nil {
				used.CPU = time.Duration(n * float64(time.Second))
				found++
			}
		}
		if rest, is := bytes.CutPrefix(lines.Bytes(), rssMetric); is {
			if n, err := strconv.ParseFloat(string(rest), 64); err == nil && n >= 0 {
				used.RSS = uint64(n)
				found++
			}
		}
	}
	return used, found == 2
}
