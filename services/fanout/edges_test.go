package fanout

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwaitEdges(t *testing.T) {
	for _, tt := range []struct {
		name  string
		edges map[time.Duration]int // from a time on
		want  time.Duration
	}{
		{"none", nil, edgesMost},
		{"one", map[time.Duration]int{3 * time.Second: 1}, 3*time.Second + edgesSettle},
		{"two, one after the other", map[time.Duration]int{time.Second: 1, 2 * time.Second: 2}, 2*time.Second + edgesSettle},
		{"one goes", map[time.Duration]int{time.Second: 2, 2 * time.Second: 1}, 2*time.Second + edgesSettle},
		{"all go", map[time.Duration]int{time.Second: 1, 2 * time.Second: 0}, edgesMost},
		{"they come and go", map[time.Duration]int{time.Second: 1, 3 * time.Second: 2, 5 * time.Second: 1, 7 * time.Second: 2, 9 * time.Second: 3}, edgesMost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				awaitEdges(t.Context(), func() int {
					count, latest := 0, time.Duration(-1)
					for at, n := range tt.edges {
						if at <= time.Since(began) && at > latest {
							count, latest = n, at
						}
					}
					return count
				})
				if got := time.Since(began); got != tt.want {
					t.Errorf("waited %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestAwaitEdgesEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	awaitEdges(ctx, func() int { return 0 })
}
