package deflate

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsflate"
	"pgregory.net/rapid"
)

// events joins market-data events of 135 bytes as the engine does: quotes of
// some symbols, near each other in price and time.
func events(n int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	symbols := strings.Fields("AAPL MSFT NVDA TSLA AMZN META GOOG AMD NFLX INTC BAC F T XOM KO PFE CSCO WMT DIS JPM")
	clock := 1778851800000
	var b bytes.Buffer
	for i := range n {
		b.WriteByte("[,"[min(i, 1)])
		s := symbols[random.IntN(len(symbols))]
		price := 5000 + 1000*len(s) + random.IntN(20000)
		clock += random.IntN(3)
		e := fmt.Sprintf(`{"ev":"Q","sym":"%s","bx":%d,"bp":%d.%02d,"bs":%d,"ax":%d,"ap":%d.%02d,"as":%d,"c":1,"i":[604],"t":%d,"z":3,"q":`,
			s, 1+random.IntN(20), price/100, price%100, 1+random.IntN(30), 1+random.IntN(20), (price+1)/100, (price+1)%100, 1+random.IntN(30), clock)
		digits := 135 - len(e) - len("}")
		b.WriteString(e + fmt.Sprint(1_234_567_891_234_567_891 + int64(37*i))[19-digits:] + "}")
	}
	b.WriteByte(']')
	return b.Bytes()
}

// inflated reads a message with the reader of the standard library.
func inflated(payload []byte) ([]byte, error) {
	return io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader(end))))
}

// deflated writes a message with the writer of the standard library.
func deflated(t testing.TB, level int, parts ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if _, err := io.WriteString(w, p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.TrimSuffix(b.Bytes(), []byte(tail))
}

// messages are texts of all kinds, alike and random, short and of several blocks.
func messages() *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		piece := rapid.OneOf(
			rapid.SliceOfN(rapid.Byte(), 0, 300),
			rapid.Map(rapid.IntRange(1, 40), events),
			rapid.Map(rapid.IntRange(0, 70000), func(n int) []byte { return bytes.Repeat([]byte("a"), n) }),
		)
		var all []byte
		for _, i := range rapid.SliceOfN(piece, 0, 6).Draw(t, "pieces") {
			all = append(all, i...)
		}
		return all
	})
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		message := messages().Draw(t, "message")
		before := rapid.SliceOfN(rapid.Byte(), 0, 10).Draw(t, "before")
		all := Append(bytes.Clone(before), message)
		payload, ok := bytes.CutPrefix(all, before)
		if !ok {
			t.Fatal("what was there before is gone")
		}
		if got, err := inflated(payload); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("compress/flate: %d bytes of %d, error %v", len(got), len(message), err)
		}
		got, err := Inflate(before, payload, len(message))
		if err != nil || !bytes.Equal(got, append(bytes.Clone(before), message...)) {
			t.Fatalf("Inflate: %d bytes of %d, error %v", len(got)-len(before), len(message), err)
		}
	})
}

// TestAgreesWithGobwas reads with ours what gobwas/ws writes, and the reverse.
func TestAgreesWithGobwas(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 5, 20, 100, 1000} {
		message := events(n)
		theirs, err := wsflate.CompressFrame(ws.NewTextFrame(message))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Inflate(nil, theirs.Payload, len(message)); err != nil || !bytes.Equal(got, message) {
			t.Errorf("%d events of gobwas: %d bytes of %d, error %v", n, len(got), len(message), err)
		}
		ours := ws.NewTextFrame(Append(nil, message))
		ours.Header.Rsv = ws.Rsv(true, false, false)
		if got, err := wsflate.DecompressFrame(ours); err != nil || !bytes.Equal(got.Payload, message) {
			t.Errorf("%d events of ours: %d bytes of %d, error %v", n, len(got.Payload), len(message), err)
		}
	}
}

func TestEventsAreAsLongAsSaid(t *testing.T) {
	t.Parallel()
	if n := len(events(100)); n != 100*135+101 {
		t.Fatalf("%d bytes", n)
	}
}

// TestInflate are the examples of RFC 7692 §7.2.3 and what is like them.
func TestInflate(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789", 4000)
	for name, c := range map[string]struct {
		payload string
		want    string
		err     error
	}{
		"one block":                       {"\xf2\x48\xcd\xc9\xc9\x07\x00", "Hello", nil},
		"refers to a message before":      {"\xf2\x00\x11\x00\x00", "", ErrCorrupt},
		"stored":                          {"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", "Hello", nil},
		"last block":                      {"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", "Hello", nil},
		"two blocks":                      {"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", "Hello", nil},
		"last block twice":                {"\xf3\x48\xcd\xc9\xc9\x07\x00\xf3\x48\xcd\xc9\xc9\x07\x00\x00", "HelloHello", nil},
		"last block, then another":        {"\xf3\x48\xcd\xc9\xc9\x07\x00\xf2\x48\xcd\xc9\xc9\x07\x00", "HelloHello", nil},
		"last block, nothing behind":      {"\xf3\x48\xcd\xc9\xc9\x07\x00", "", ErrCorrupt},
		"empty message":                   {"\x00", "", nil},
		"empty block":                     {"\x02\x00", "", nil},
		"nothing":                         {"", "", ErrCorrupt},
		"cut":                             {"\xf2\x48\xcd\xc9", "", ErrCorrupt},
		"tail left on":                    {"\xf2\x48\xcd\xc9\xc9\x07\x00\x00\x00\xff\xff", "", ErrCorrupt},
		"reserved block type":             {"\x06", "", ErrCorrupt},
		"not compressed at all":           {`{"action":"subscribe"}`, "", ErrCorrupt},
		"stored, wrong check of length":   {"\x00\x05\x00\xfa\xfe\x48\x65\x6c\x6c\x6f\x00", "", ErrCorrupt},
		"stored, longer than the message": {"\x00\xff\xff\x00\x00\x48", "", ErrCorrupt},
		"level 1":                         {string(deflated(t, 1, long)), long, nil},
		"level 9":                         {string(deflated(t, 9, long)), long, nil},
		"level 0":                         {string(deflated(t, 0, long)), long, nil},
		"flushed in between":              {string(deflated(t, 6, "Hel", "", "lo")), "Hello", nil},
	} {
		got, err := Inflate([]byte("before "), []byte(c.payload), len(long))
		if !errors.Is(err, c.err) || err == nil && string(got) != "before "+c.want || err != nil && got != nil {
			t.Errorf("%s: %.80q, error %v; want %.80q, error %v", name, got, err, c.want, c.err)
		}
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 511, 512, 513, 32 << 10, 64 << 10, 100 << 10} {
		payload := deflated(t, 9, strings.Repeat("a", n))
		for _, dst := range [][]byte{nil, make([]byte, 3, 5), make([]byte, 3, 200<<10)} {
			if got, err := Inflate(dst, payload, n); err != nil || len(got) != len(dst)+n {
				t.Errorf("%d bytes, limit %d: %d, error %v", n, n, len(got)-len(dst), err)
			} else if cap(got) > max(cap(dst), len(dst)+n) {
				t.Errorf("%d bytes, limit %d: room for %d", n, n, cap(got))
			}
			if n == 0 {
				continue
			}
			if _, err := Inflate(dst, payload, n-1); !errors.Is(err, ErrTooBig) {
				t.Errorf("%d bytes, limit %d: error %v", n, n-1, err)
			}
		}
	}
}

// bomb is a message of 8 KiB that inflates to 8 MiB.
func bomb(t testing.TB) []byte {
	b := deflated(t, 9, strings.Repeat("0", 8<<20))
	if len(b) > 8<<10 {
		t.Fatalf("%d bytes", len(b))
	}
	return b
}

// TestHostile holds what becomes of messages made to be much work.
func TestHostile(t *testing.T) {
	t.Parallel()
	for name, payload := range hostile(t) {
		var want error
		if name == "bomb" {
			want = ErrTooBig
		}
		if got, err := Inflate(nil, payload, 64<<10); !errors.Is(err, want) || len(got) != 0 {
			t.Errorf("%s: %d bytes, error %v, want %v", name, len(got), err, want)
		}
	}
}

// TestSafeForConcurrentUse shares the pools, also between messages that fail.
func TestSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	message := events(20)
	payload := Append(nil, message)
	for range 4 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			for range 100 {
				if !bytes.Equal(Append(nil, message), payload) {
					t.Fatal("compressed otherwise")
				}
				if _, err := Inflate(nil, payload[:len(payload)/2], 1<<20); !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
				if _, err := Inflate(nil, payload, 100); !errors.Is(err, ErrTooBig) {
					t.Fatal(err)
				}
				if got, err := Inflate(nil, payload, 1<<20); err != nil || !bytes.Equal(got, message) {
					t.Fatal("inflated otherwise", err)
				}
			}
		})
	}
}

// FuzzInflate compares with compress/flate, and holds the limit.
func FuzzInflate(f *testing.F) {
	f.Add([]byte("\xf2\x48\xcd\xc9\xc9\x07\x00"), uint16(5))
	f.Add([]byte("\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), uint16(4))
	f.Add(deflated(f, 9, strings.Repeat("0", 1<<20)), uint16(1<<15))
	f.Add(deflated(f, -2, "Hello"), uint16(100))
	f.Add(Append(nil, events(3)), uint16(1000))
	f.Fuzz(func(t *testing.T, payload []byte, limit uint16) {
		got, err := Inflate(nil, payload, int(limit))
		if cap(got) > max(int(limit), firstRoom) {
			t.Fatalf("room for %d, limit %d", cap(got), limit)
		}
		var want []byte
		in := strings.NewReader(string(payload) + end)
		for in.Len() > 0 && len(want) <= int(limit) {
			part, cut := io.ReadAll(io.LimitReader(flate.NewReader(in), int64(limit)+1))
			want = append(want, part...)
			if cut != nil && len(want) <= int(limit) {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("error %v, want ErrCorrupt as compress/flate says %v", err, cut)
				}
				return
			}
		}
		switch {
		case len(want) > int(limit):
			if !errors.Is(err, ErrTooBig) {
				t.Fatalf("error %v, want ErrTooBig", err)
			}
		case err != nil || !bytes.Equal(got, want):
			t.Fatalf("%q, error %v; want %q", got, err, want)
		}
	})
}

// FuzzAppend holds that any payload comes out again.
func FuzzAppend(f *testing.F) {
	f.Add([]byte{})
	f.Add(events(2))
	f.Fuzz(func(t *testing.T, message []byte) {
		if got, err := inflated(Append(nil, message)); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("%q, error %v; want %q", got, err, message)
		}
	})
}
