package vendor

import (
	"context"
	"errors"
	"testing"

	"github.com/coder/websocket"
)

func TestConversation(t *testing.T) {
	v, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx) }()
	if _, err := v.Write([]byte{0x81, 0}); !errors.Is(err, ErrNobody) {
		t.Errorf("write to nobody: %v", err)
	}
	c, _, err := websocket.Dial(ctx, v.URL()+"/stocks", nil)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		if _, got, err := c.Read(ctx); err != nil || string(got) != want {
			t.Fatalf("got %s, %v, want %s", got, err, want)
		}
	}
	send := func(message string) {
		t.Helper()
		if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	expect(`[{"ev":"status","status":"connected","message":"Connected Successfully"}]`)
	send(`{"action":"auth","params":"any"}`)
	expect(`[{"ev":"status","status":"auth_success","message":"authenticated"}]`)
	send(`{"action":"subscribe","params":"T.S0000,T.S0001"}`)
	expect(`[{"ev":"status","status":"success","message":"subscribed to: T.S0000"},{"ev":"status","status":"success","message":"subscribed to: T.S0001"}]`)
	if _, err := v.Write([]byte("\x81\x0a[{\"ev\":1}]")); err != nil {
		t.Fatal(err)
	}
	expect(`[{"ev":1}]`)

	reading := c.CloseRead(ctx)
	if err := c.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	cancel()
	<-reading.Done()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
