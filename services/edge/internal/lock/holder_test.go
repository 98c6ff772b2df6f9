package lock

import (
	"testing"
	"time"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
	"github.com/cutemarkets/relay/services/internal/redisx"
)

func TestHolder(t *testing.T) {
	address := startRedis(t)
	a := newManager(t, Config{EdgeID: "a"}, redisx.Options{Address: []string{address}})
	b := newManager(t, Config{EdgeID: "b"}, redisx.Options{Address: []string{address}})
	if _, held, err := b.Holder(t.Context(), "user-1"); held || err != nil {
		t.Fatalf("a lock that nobody holds: %v, %v", held, err)
	}
	before := time.Now().Add(-time.Microsecond)
	if _, r := a.Acquire(t.Context(), "user-1", 0xabc); r != dialect.OK {
		t.Fatal(r)
	}
	h, held, err := b.Holder(t.Context(), "user-1")
	if err != nil || !held || h.Edge != "a" || h.Owner != 0xabc {
		t.Fatalf("%+v, %v, %v", h, held, err)
	}
	if h.Since.Before(before) || h.Since.After(time.Now()) || h.Expires <= 0 || h.Expires > 15*time.Second {
		t.Fatalf("since %v, kept for %v", h.Since, h.Expires)
	}
	users := map[string]Holder{}
	a.Held(func(user string, h Holder) { users[user] = h })
	h.Expires = 0
	if len(users) != 1 || users["user-1"] != h {
		t.Fatalf("the edge tells %+v, want %+v", users, h)
	}
	plain(t, address).Set(t.Context(), string(appendKey(nil, bucketOf("user-2"), "user-2")), "a/b", 0)
	if h, held, err := b.Holder(t.Context(), "user-2"); err != nil || !held || h != (Holder{}) {
		t.Fatalf("a key that is not ours: %+v, %v, %v", h, held, err)
	}
}

func TestStampGrows(t *testing.T) {
	var m Manager
	m.number.Store(uint64(time.Now().Add(time.Hour).UnixMicro()))
	if first, second := m.stamp(), m.stamp(); second <= first {
		t.Fatalf("%d, then %d", first, second)
	}
}
