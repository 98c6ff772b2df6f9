package leader

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestStatic(t *testing.T) {
	start := time.Unix(1700000000, 5)
	s := NewStatic(start)
	ctx, cancel := context.WithCancel(t.Context())
	var got Epoch
	err := s.Run(ctx, "stocks", func(ctx context.Context, l Leadership) error {
		got = l.Epoch
		cancel()
		<-ctx.Done()
		return nil
	})
	if want := (Epoch{Generation: 1700000000000000005, Term: 1}); err != nil || got != want {
		t.Errorf("epoch %v, error %v", got, err)
	}
}

func TestStaticWorkEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct{ returned, want error }{{nil, ErrEnded}, {broken, broken}} {
		err := NewStatic(time.Now()).Run(t.Context(), "stocks", func(context.Context, Leadership) error { return tt.returned })
		if !errors.Is(err, tt.want) {
			t.Errorf("work returned %v: got %v, want %v", tt.returned, err, tt.want)
		}
	}
}

func TestStandby(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (Standby{}).Run(ctx, "stocks", func(context.Context, Leadership) error { panic("leads") }); err != nil {
		t.Error(err)
	}
}
