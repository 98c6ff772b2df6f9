package wire

import (
	"bytes"
	"compress/flate"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestParseHeader(t *testing.T) {
	for name, c := range map[string]struct {
		in       string
		compress bool
		want     Header
		ok       bool
		fault    Fault
	}{
		"short":             {in: "\x81"},
		"text":              {in: "\x81\x05", want: Header{OpText, true, false, 2, 5}, ok: true},
		"16 bits":           {in: "\x81\x7e\x01\x00", want: Header{OpText, true, false, 4, 256}, ok: true},
		"16 bits, not all":  {in: "\x81\x7e\x01"},
		"64 bits":           {in: "\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00", want: Header{OpText, true, false, 10, 65536}, ok: true},
		"64 bits, not all":  {in: "\x81\x7f\x00\x00\x00\x00\x00\x01\x00"},
		"first of several":  {in: "\x01\x01", want: Header{OpText, false, false, 2, 1}, ok: true},
		"compressed":        {in: "\xc1\x01", compress: true, want: Header{OpText, true, true, 2, 1}, ok: true},
		"not negotiated":    {in: "\xc1\x01", fault: FrameReserved},
		"compressed ping":   {in: "\xc9\x01", compress: true, fault: FrameReserved},
		"second bit":        {in: "\xa1\x01", compress: true, fault: FrameReserved},
		"opcode 3":          {in: "\x83\x01", fault: FrameOpcode},
		"opcode 11":         {in: "\x8b\x01", fault: FrameOpcode},
		"masked":            {in: "\x81\x81", fault: FrameMasked},
		"split ping":        {in: "\x09\x01", fault: FrameControl},
		"long ping":         {in: "\x89\x7e", fault: FrameControl},
		"longer than need":  {in: "\x81\x7e\x00\x7d", fault: FrameLength},
		"longer than need.": {in: "\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff", fault: FrameLength},
		"negative":          {in: "\x81\x7f\xff\x00\x00\x00\x00\x00\xff\xff", fault: FrameLength},
	} {
		h, ok, fault := ParseHeader([]byte(c.in), c.compress)
		if ok != c.ok || fault != c.fault || (ok && h != c.want) {
			t.Errorf("%s: %+v %v %q", name, h, ok, fault)
		}
	}
}

func TestAppendFrame(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 65535, 65536} {
		payload := bytes.Repeat([]byte("abc"), n/3+1)[:n]
		frame := AppendFrame(nil, OpText, payload, 0x04030201)
		if frame[1]&0x80 == 0 {
			t.Fatal("not masked")
		}
		frame[1] &^= 0x80
		h, ok, fault := ParseHeader(frame, false)
		if !ok || fault != "" || h.Length != n || len(frame) != h.Size+4+n {
			t.Fatalf("%d: %+v %q", n, h, fault)
		}
		for i, b := range frame[h.Size+4:] {
			if b^frame[h.Size+i%4] != payload[i] {
				t.Fatalf("%d: byte %d", n, i)
			}
		}
	}
}

func TestParseClose(t *testing.T) {
	for _, c := range []struct {
		in    string
		code  int
		text  string
		fault Fault
	}{
		{"", 0, "", ""}, {"\x03\xe8", 1000, "", ""}, {"\x03\xf4service restart", 1012, "service restart", ""},
		{"\x03\xf6", 1014, "", ""}, {"\x11\x31no", 4401, "no", ""},
		{"\x03", 0, "", FrameClose}, {"\x03\xed", 1005, "", FrameClose}, {"\x03\xf7", 1015, "", FrameClose}, {"\x03\xe8\xff", 1000, "\xff", FrameClose},
	} {
		code, text, fault := ParseClose([]byte(c.in))
		if code != c.code || string(text) != c.text || fault != c.fault {
			t.Errorf("%q: %d %q %q", c.in, code, text, fault)
		}
	}
}

func split(message string) (objects []string, fault Fault) {
	a := Split([]byte(message))
	for {
		object, ok := a.Next()
		if !ok {
			return objects, a.Fault()
		}
		objects = append(objects, string(object))
	}
}

func TestSplit(t *testing.T) {
	for message, want := range map[string]struct {
		objects string
		fault   Fault
	}{
		`[]`: {"", ""}, ` [ ] `: {"", ""}, `[{}]`: {"{}", ""}, `[{"a":1},{"b":2}]`: {`{"a":1} {"b":2}`, ""},
		" [ {\"a\":1} ,\n {} ] ":           {`{"a":1} {}`, ""},
		`[{"a":{"b":{}}},{}]`:              {`{"a":{"b":{}}} {}`, ""},
		`[{"a":"}"},{"b":"{"}]`:            {`{"a":"}"} {"b":"{"}`, ""},
		`[{"a":"\"}"},{"b":"\\"}]`:         {`{"a":"\"}"} {"b":"\\"}`, ""},
		`[{"a":"},{"}]`:                    {`{"a":"},{"}`, ""},
		``:                                 {"", NotArray},
		`{"a":1}`:                          {"", NotArray},
		`null`:                             {"", NotArray},
		`[`:                                {"", Truncated},
		`[{"a":1}`:                         {`{"a":1}`, Truncated},
		`[{"a":1},`:                        {`{"a":1}`, Truncated},
		`[{"a":1},{"b`:                     {`{"a":1}`, Truncated},
		`[{"a":"}`:                         {"", Truncated},
		`[{"a":"\`:                         {"", Truncated},
		`[{"a":1},7,{}]`:                   {`{"a":1}`, NotObject},
		`[null]`:                           {"", NotObject},
		`[,{}]`:                            {"", NotObject},
		`[{},]`:                            {"{}", NotObject},
		`[{}{}]`:                           {"{}", NotArray},
		`[{"a":1}]x`:                       {`{"a":1}`, Trailing},
		`[{"a":1}][{"b":2}]`:               {`{"a":1}`, Trailing},
		`[{"a":1}, ` + "\x00" + `{"b":2}]`: {`{"a":1}`, NotObject},
	} {
		objects, fault := split(message)
		if strings.Join(objects, " ") != want.objects || fault != want.fault {
			t.Errorf("%s: %q %q", message, objects, fault)
		}
	}
}

// TestSplitModel compares with encoding/json.
func TestSplitModel(t *testing.T) {
	text := rapid.StringOf(rapid.SampledFrom([]rune(`ab{}[]",\:`)))
	rapid.Check(t, func(t *rapid.T) {
		wrote := rapid.SliceOfN(rapid.MapOfN(text, text, 0, 3), 0, 5).Draw(t, "objects")
		message, err := json.Marshal(wrote)
		if err != nil {
			t.Fatal(err)
		}
		if wrote == nil {
			message = []byte("[]")
		}
		objects, fault := split(string(message))
		if fault != "" || len(objects) != len(wrote) {
			t.Fatalf("%s: %q %q", message, objects, fault)
		}
		for i, object := range objects {
			var read map[string]string
			if err := json.Unmarshal([]byte(object), &read); err != nil || fmt.Sprint(read) != fmt.Sprint(wrote[i]) {
				t.Fatalf("%s: %s", message, object)
			}
		}
		cut := rapid.IntRange(0, len(message)-1).Draw(t, "cut")
		if _, fault := split(string(message[:cut])); fault == "" {
			t.Fatalf("%s cut at %d: no fault", message, cut)
		}
	})
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte(`[{"a":"\"}"},{"b":{}}]`))
	f.Fuzz(func(t *testing.T, message []byte) {
		objects, fault := split(string(message))
		var whole []map[string]any
		if json.Unmarshal(message, &whole) == nil && bytes.IndexByte(message, 'n') < 0 && (fault != "" || len(objects) != len(whole)) {
			t.Errorf("%q: %q %q", message, objects, fault)
		}
	})
}

func TestStamp(t *testing.T) {
	for raw, want := range map[string]struct {
		value int64
		ok    bool
	}{
		`{"ev":"T","ts":1700000000000000001}`: {1700000000000000001, true},
		`{"ts":17,"n":3}`:                     {17, true},
		`{"ts": 17 ,"n":3}`:                   {17, true},
		`{"ts":1,"a":{"ts":2}}`:               {2, true},
		`{"tts":17}`:                          {0, false},
		`{"ts":"17"}`:                         {0, false},
		`{"ts":17.5}`:                         {0, false},
		`{"ts":-17}`:                          {0, false},
		`{"ts":17`:                            {0, false},
		`{"ts":99999999999999999999}`:         {0, false},
		`{"ts":9223372036854775807}`:          {9223372036854775807, true},
		`{"ts":`:                              {0, false},
		`"ts":`:                               {0, false},
		``:                                    {0, false},
	} {
		value, ok := Stamp([]byte(raw), NewField("ts"))
		if ok != want.ok || (ok && value != want.value) {
			t.Errorf("%s: %d %v", raw, value, ok)
		}
	}
}

func TestParseStatus(t *testing.T) {
	for _, c := range []struct {
		object, status, message string
		ok                      bool
	}{
		{`{"ev":"status","status":"success","message":"subscribed to: T.A"}`, "success", "subscribed to: T.A", true},
		{`{"ev":"status","status":"gap","message":"m","market":"stocks","to":null}`, "gap", "m", true},
		{`{"ev":"status", "message":"m","status":"gap"}`, "gap", "m", true},
		{`{"ev":"status","status":"error","message":"say \"x\""}`, "error", `say "x"`, true},
		{`{"ev":"status","status":"error"}`, "error", "", true},
		{`{"ev":"status","message":"m"}`, "", "", false},
		{`{"ev":"status","status":7}`, "", "", false},
		{`{"ev":"status","status":"a","x":"b","message":"m"}`, "a", "m", true},
	} {
		status, message, ok := ParseStatus([]byte(c.object))
		if string(status) != c.status || string(message) != c.message || ok != c.ok || !IsStatus([]byte(c.object)) {
			t.Errorf("%s: %q %q %v", c.object, status, message, ok)
		}
	}
	if IsStatus([]byte(`{"ev":"T"}`)) || IsStatus(nil) {
		t.Error("taken for a status")
	}
}

func TestParseAnswer(t *testing.T) {
	const good = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nsec-websocket-accept: " + Accept + "\r\n"
	for name, c := range map[string]struct {
		in      string
		deflate bool
		want    Answer
		ok      bool
		fault   Fault
	}{
		"good":         {in: good + "\r\n\x81", want: Answer{Size: len(good) + 2, Code: 101}, ok: true},
		"not all":      {in: good},
		"deflate":      {in: good + "Sec-WebSocket-Extensions: " + Offer + "\r\n\r\n", deflate: true, want: Answer{Size: len(good) + 30 + len(Offer), Code: 101, Deflate: true}, ok: true},
		"with context": {in: good + "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", deflate: true, fault: BadExtension},
		"not offered":  {in: good + "Sec-WebSocket-Extensions: " + Offer + "\r\n\r\n", fault: BadExtension},
		"no accept":    {in: "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n", fault: BadUpgrade},
		"429":          {in: "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n\r\n{}", want: Answer{Size: 50, Code: 429, RetryAfter: 7 * time.Second}, ok: true},
		"503":          {in: "HTTP/1.1 503\r\nRetry-After: soon\r\n\r\n", want: Answer{Size: 35, Code: 503}, ok: true},
		"no HTTP":      {in: "SSH-2.0\r\n\r\n", fault: BadAnswer},
		"empty":        {in: "\r\n\r\n", fault: BadAnswer},
		"no code":      {in: "HTTP/1.1 \r\n\r\n", fault: BadAnswer},
		"endless":      {in: strings.Repeat("x", MaxAnswer+1), fault: BadAnswer},
	} {
		a, ok, fault := ParseAnswer([]byte(c.in), c.deflate)
		if ok != c.ok || fault != c.fault || (ok && a != c.want) {
			t.Errorf("%s: %+v %v %q", name, a, ok, fault)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 x\r\n\r\n"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = ParseAnswer(b, true) })
}

func TestInflate(t *testing.T) {
	var i Inflater
	for _, message := range []string{"", "[{}]", strings.Repeat(`{"ev":"T","p":1.25},`, 5000)} {
		var out bytes.Buffer
		w, err := flate.NewWriter(&out, 1)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(message))
		_ = w.Flush()
		payload := bytes.TrimSuffix(out.Bytes(), []byte("\x00\x00\xff\xff"))
		got, fault := i.Inflate(payload, 1<<20)
		if fault != "" || string(got) != message {
			t.Errorf("%d bytes: %d, %q", len(message), len(got), fault)
		}
		if len(message) > 1000 {
			if _, fault := i.Inflate(payload, 1000); fault != MessageTooBig {
				t.Errorf("%q", fault)
			}
		}
	}
	if _, fault := i.Inflate([]byte{0xff, 0xff}, 100); fault != Inflate {
		t.Errorf("%q", fault)
	}
}

const event = `{"ev":"T","sym":"S0001","x":4,"i":"12345","z":3,"p":187.231,"s":100,"c":[14,41],"t":1700000000000,"q":1000001,"ts":1700000000000000001}`

func BenchmarkSplit(b *testing.B) {
	message := []byte("[" + strings.Repeat(event+",", 19) + event + "]")
	ts := NewField("ts")
	b.ReportAllocs()
	for b.Loop() {
		a := Split(message)
		for {
			object, ok := a.Next()
			if !ok {
				break
			}
			if _, ok := Stamp(object, ts); !ok {
				b.Fatal("no stamp")
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/20, "ns/event")
}
