package front

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestClientAddr(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tt := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"no field", "192.0.2.1", nil, "192.0.2.1"},
		{"untrusted peer", "192.0.2.1", []string{"198.51.100.1"}, "192.0.2.1"},
		{"trusted peer without the field", "10.0.0.1", nil, "10.0.0.1"},
		{"one proxy", "10.0.0.1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.0.0.1", []string{"198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"client makes up one", "10.0.0.1", []string{"203.0.113.9, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"client makes up a proxy", "10.0.0.1", []string{"10.9.9.9, 198.51.100.1"}, "198.51.100.1"},
		{"several fields", "10.0.0.1", []string{"203.0.113.9", "198.51.100.1", "10.0.0.2 ,10.0.0.3"}, "198.51.100.1"},
		{"all trusted", "10.0.0.1", []string{"10.0.0.9, 10.0.0.2"}, "10.0.0.9"},
		{"garbage", "10.0.0.1", []string{"198.51.100.1, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"empty elements", "10.0.0.1", []string{"198.51.100.1, ,", "", ","}, "198.51.100.1"},
		{"port", "10.0.0.1", []string{"198.51.100.1:5000"}, "198.51.100.1"},
		{"IPv6", "fd00::1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"IPv6 in brackets", "fd00::1", []string{"[2001:db8::1]"}, "2001:db8::1"},
		{"IPv6 with port", "fd00::1", []string{"[2001:db8::1]:5000"}, "2001:db8::1"},
		{"IPv4 in IPv6 peer", "::ffff:10.0.0.1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"zone", "fd00::1%eth0", []string{"2001:db8::1%x"}, "2001:db8::1"},
		{"half a bracket", "fd00::1", []string{"[2001:db8::1"}, "fd00::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := clientAddr(netip.MustParseAddr(tt.peer), tt.forwarded, trusted)
			if got.String() != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestClientAddrSpoof holds that nothing a client writes to the left of what a
// trusted proxy adds matters, however it is spread over fields.
func TestClientAddrSpoof(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	rapid.Check(t, func(t *rapid.T) {
		forwarded := rapid.SliceOfN(rapid.StringOf(rapid.RuneFrom([]rune("0123456789.:[], abcdef"))), 0, 5).Draw(t, "made up")
		tail := rapid.SampledFrom([]string{"192.0.2.7", "192.0.2.7, 10.1.1.1", "192.0.2.7:80 , 10.1.1.1,10.2.2.2"}).Draw(t, "by proxies")
		if len(forwarded) > 0 && rapid.Bool().Draw(t, "joined") {
			forwarded[len(forwarded)-1] += ", " + tail
		} else {
			forwarded = append(forwarded, strings.Split(tail, " ,")...)
		}
		if got := clientAddr(netip.MustParseAddr("10.0.0.1"), forwarded, trusted); got.String() != "192.0.2.7" {
			t.Fatalf("%v from %q", got, forwarded)
		}
	})
}

func TestThrottle(t *testing.T) {
	now := time.Unix(1000, 0)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	s := newThrottle[netip.Addr](2, 3)
	for i := range 3 {
		if !s.ready(a, now) || !s.take(a, now) {
			t.Fatalf("token %d is missing", i)
		}
	}
	if s.ready(a, now) || s.take(a, now) {
		t.Error("a fourth token")
	}
	if !s.ready(b, now) {
		t.Error("another address has none")
	}
	if now = now.Add(499 * time.Millisecond); s.ready(a, now) {
		t.Error("a token too early")
	}
	if now = now.Add(time.Millisecond); !s.ready(a, now) || !s.take(a, now) || s.take(a, now) {
		t.Error("want one token after half a second")
	}
	if s.take(a, now.Add(-time.Hour)) {
		t.Error("a clock that goes back gives tokens")
	}
	now = now.Add(time.Hour)
	for i := range 4 {
		if got := s.take(a, now); got != (i < 3) {
			t.Errorf("after an hour, token %d: %v", i, got)
		}
	}
	var none *throttle[netip.Addr]
	if !none.take(a, now) {
		t.Error("no throttle refuses")
	}
}

// TestThrottleIsBounded floods a throttle with addresses.
func TestThrottleIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newThrottle[netip.Addr](1, 1)
	addr := netip.MustParseAddr("10.0.0.0")
	for range maxBuckets + 1000 {
		addr = addr.Next()
		s.take(addr, now)
	}
	if n := s.buckets.Len(); n != maxBuckets {
		t.Errorf("%d buckets, want %d", n, maxBuckets)
	}
	if s.ready(addr, now) {
		t.Error("the last address has been forgotten")
	}
}

func TestBucketKey(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1":                 "192.0.2.1",
		"::ffff:192.0.2.1":          "192.0.2.1",
		"2001:db8:1:2:3:4:5:6":      "2001:db8:1:2::",
		"2001:db8:1:2:3:4:5:6%eth0": "2001:db8:1:2::",
	} {
		if got := bucketKey(netip.MustParseAddr(addr)); got.String() != want {
			t.Errorf("%s: %v, want %s", addr, got, want)
		}
	}
	if got := bucketKey(netip.Addr{}); got.IsValid() {
		t.Errorf("no address: %v", got)
	}
}

// TestNoAllocs holds what an attack can make us do most often.
func TestNoAllocs(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newThrottle[netip.Addr](1, 1)
	addr := netip.MustParseAddr("2001:db8::1")
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	peer, forwarded := netip.MustParseAddr("10.0.0.1"), []string{"198.51.100.1, 10.0.0.2"}
	r := parse(t, request("/v1/ws/stocks/"))
	s.take(addr, now)
	for name, fn := range map[string]func(){
		"throttle": func() { s.ready(addr, now); s.take(addr, now) },
		"client":   func() { bucketKey(clientAddr(peer, forwarded, trusted)) },
		"checks":   func() { checkRequest(r, route(r.URL.Path)); checkOrigin(r, nil); checkUpgrade(r) },
	} {
		if n := testing.AllocsPerRun(100, fn); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}
