package cutemarkets

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

var _ dialect.Dialect = (*Dialect)(nil)

// checkStatuses holds a message to the shape the vendor's SDKs need: an array
// of objects that begin with ev, status and message.
func checkStatuses(t *testing.T, message []byte) {
	t.Helper()
	var objects []json.RawMessage
	if err := json.Unmarshal(message, &objects); err != nil || len(objects) == 0 {
		t.Fatalf("%v in %s", err, message)
	}
	if !utf8.Valid(message) {
		t.Fatalf("not UTF-8: %q", message)
	}
	for _, object := range objects {
		var keys []string
		tokens := json.NewDecoder(bytes.NewReader(object))
		_, _ = tokens.Token() // the brace
		for range 3 {
			key, _ := tokens.Token()
			value, err := tokens.Token()
			if _, ok := value.(string); !ok || err != nil {
				t.Fatalf("%v: %v is %v in %s", err, key, value, object)
			}
			keys = append(keys, key.(string))
		}
		if strings.Join(keys, " ") != "ev status message" || !bytes.HasPrefix(object, []byte(`{"ev":"status",`)) {
			t.Fatalf("keys %q in %s", keys, object)
		}
	}
}

func TestFrames(t *testing.T) {
	d := both()
	from := time.Date(2026, 5, 15, 13, 30, 0, 1_234_567, time.FixedZone("", 3600))
	for _, c := range []struct {
		name string
		got  []byte
		want string
	}{
		{"greeting", d.Greeting(), `[{"ev":"status","status":"connected","message":"Connected Successfully"}]`},
		{"welcome", d.Welcome(), `[{"ev":"status","status":"auth_success","message":"authenticated"}]`},
		{"sign-in again", d.Signin(dialect.OK), `[{"ev":"status","status":"auth_success","message":"authenticated"}]`},
		{"sign-in of another user", d.Signin(dialect.CredentialConflict), `[{"ev":"status","status":"auth_failed","message":"authentication failed: the API key belongs to another user; the connection stays as it was"}]`},
		{"sign-in with a bad key", d.Signin(dialect.CredentialInvalid), `[{"ev":"status","status":"auth_failed","message":"authentication failed: invalid API key"}]`},
		{"sign-in without auth", d.Signin(dialect.AuthUnavailable), `[{"ev":"status","status":"error","message":"the API key could not be checked now; the connection stays as it was"}]`},
		{"subscribed", d.Reply(decode("stocks", `{"action":"subscribe","params":"T.AAPL,t.A"}`)),
			`[{"ev":"status","status":"success","message":"subscribed to: T.AAPL"},{"ev":"status","status":"error","message":"cannot subscribe to: t.A: unknown prefix (stocks: T Q A AM LULD NOI FMV LV)"}]`},
		{"unsubscribed", d.Reply(decode("stocks", `{"action":"unsubscribe","params":"AM.*,T."}`)),
			`[{"ev":"status","status":"success","message":"unsubscribed to: AM.*"},{"ev":"status","status":"error","message":"cannot unsubscribe from: T.: a topic is PREFIX.SYMBOL or PREFIX.*"}]`},
		{"topic problem", d.TopicProblem("NOI.IBM", "not authorized"), `[{"ev":"status","status":"error","message":"cannot subscribe to: NOI.IBM: not authorized"}]`},
		{"gap", d.Gap(dialect.Gap{Market: "stocks", From: from, To: from.Add(time.Second)}),
			`[{"ev":"status","status":"gap","message":"events may be missing between from and to","market":"stocks","from":"2026-05-15T12:30:00.001Z","to":"2026-05-15T12:30:01.002Z"}]`},
		{"gap to a whole millisecond", d.Gap(dialect.Gap{Market: "stocks", From: from, To: from.Truncate(time.Second)}),
			`[{"ev":"status","status":"gap","message":"events may be missing between from and to","market":"stocks","from":"2026-05-15T12:30:00.001Z","to":"2026-05-15T12:30:00.000Z"}]`},
		{"gap that lasts", d.Gap(dialect.Gap{Market: "options", From: from, Topics: []string{"T.A", "AM.*"}}),
			`[{"ev":"status","status":"gap","message":"events may be missing until further notice","market":"options","from":"2026-05-15T12:30:00.001Z","to":null,"topics":["T.A","AM.*"]}]`},
		{"gap since an unknown moment", d.Gap(dialect.Gap{Market: "options"}),
			`[{"ev":"status","status":"gap","message":"events may be missing until further notice","market":"options","from":null,"to":null}]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if string(c.got) != c.want {
				t.Errorf("\n got %s\nwant %s", c.got, c.want)
			}
			checkStatuses(t, c.got)
		})
	}
}

func TestEventsAreTheVendorsBytes(t *testing.T) {
	event := []byte(`{"ev":"T", "sym":"AAPL","p":1.50}`)
	if got := both().Encode(event); &got[0] != &event[0] || len(got) != len(event) {
		t.Error("the event was touched")
	}
	prefix, separator, suffix := both().Envelope()
	if joined := prefix + string(event) + separator + string(event) + suffix; !json.Valid([]byte(joined)) {
		t.Error(joined)
	}
}

// TestBye is the table of all ends, one row per reason.
func TestBye(t *testing.T) {
	type row struct {
		code   uint16
		hold   time.Duration
		status string // of the frame before the close; empty: none
	}
	const ms = time.Millisecond
	want := map[dialect.Reason]row{
		dialect.CredentialMissing:   {4401, 150 * ms, "auth_failed"},
		dialect.CredentialTimeout:   {4401, 150 * ms, "auth_timeout"},
		dialect.CredentialInvalid:   {4401, 150 * ms, "auth_failed"},
		dialect.CredentialConflict:  {4401, 150 * ms, "auth_failed"},
		dialect.ProductMismatch:     {4401, 150 * ms, "auth_failed"},
		dialect.PlanTooLow:          {4401, 150 * ms, "auth_failed"},
		dialect.MarketUnsupported:   {4401, 150 * ms, "auth_failed"},
		dialect.StreamNotConfigured: {4401, 150 * ms, "auth_failed"},
		dialect.CredentialExpired:   {4401, 150 * ms, "auth_failed"},
		dialect.DuplicateConnection: {4409, 1000 * ms, "max_connections"},
		dialect.HolderSilent:        {4409, 1000 * ms, "max_connections"},
		dialect.LockLost:            {4409, 0, "max_connections"},
		dialect.LockUnavailable:     {1011, 1000 * ms, "error"},
		dialect.AuthUnavailable:     {1011, 1000 * ms, "error"},
		dialect.UpstreamGone:        {1011, 1000 * ms, "error"},
		dialect.Internal:            {1011, 1000 * ms, "error"},
		dialect.ClientGone:          {0, 0, ""},
		dialect.ProtocolError:       {1002, 0, ""},
		dialect.UnsupportedData:     {1003, 0, ""},
		dialect.InvalidUTF8:         {1007, 0, ""},
		dialect.MessageTooBig:       {1009, 1000 * ms, "error"},
		dialect.TooManyFragments:    {1008, 0, ""},
		dialect.MessageTimeout:      {1008, 0, ""},
		dialect.CommandRate:         {1008, 1000 * ms, "error"},
		dialect.ControlRate:         {1008, 0, ""},
		dialect.BadCommands:         {1008, 1000 * ms, "error"},
		dialect.SlowConsumer:        {1008, 0, "error"},
		dialect.PongTimeout:         {1008, 0, ""},
		dialect.Draining:            {1012, 0, "draining"},
		dialect.PodFull:             {1013, 0, "error"},
	}
	texts := map[string]dialect.Reason{}
	for _, r := range dialect.Reasons() {
		t.Run(r.String(), func(t *testing.T) {
			w, ok := want[r]
			if !ok {
				if r > dialect.PodDraining && r != dialect.ClientClosed {
					t.Fatal("not in the table")
				}
				defer func() {
					if recover() == nil {
						t.Error("no panic")
					}
				}()
				both().Bye(r)
				return
			}
			bye := both().Bye(r)
			if bye.Code != w.code || bye.Hold != w.hold {
				t.Errorf("code %d, hold %s", bye.Code, bye.Hold)
			}
			if len(bye.Text) > 123 || (bye.Text == "") != (bye.Code == 0) {
				t.Errorf("text %q", bye.Text)
			}
			if other, taken := texts[bye.Text]; taken {
				t.Errorf("same text as %s", other)
			}
			texts[bye.Text] = r
			if w.status == "" {
				if len(bye.Frames) > 0 {
					t.Errorf("frames %q", bye.Frames)
				}
				return
			}
			if len(bye.Frames) != 1 || !bytes.HasPrefix(bye.Frames[0], []byte(`[{"ev":"status","status":"`+w.status+`",`)) {
				t.Fatalf("frames %q", bye.Frames)
			}
			checkStatuses(t, bye.Frames[0])
		})
	}
}

func TestSigninAnswersEveryCredentialReason(t *testing.T) {
	for r := range credentialTexts {
		checkStatuses(t, both().Signin(r))
	}
	defer func() {
		if recover() == nil {
			t.Error("no panic for a reason that is none of a credential")
		}
	}()
	both().Signin(dialect.SlowConsumer)
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"unknown market":     {Markets: []string{"crypto"}},
		"negative topics":    {MaxTopics: -1},
		"messages too big":   {MaxMessage: DefaultMaxMessage + 1},
		"messages too small": {MaxMessage: 10},
	} {
		if o.Validate() == nil {
			t.Errorf("%s: valid", name)
		}
	}
	p := New(Options{MaxTopics: 5, MaxMessage: 2048}).Policy()
	if p.MaxTopics != 5 || p.MaxMessage != 2048 || !p.Exclusive || p.CommandRate != 20 || p.CommandBurst != 50 {
		t.Errorf("%+v", p)
	}
	p = both().Policy()
	if p.MaxTopics != 1000 || p.MaxMessage != 64<<10 || p.CredentialWait != 10*time.Second {
		t.Errorf("%+v", p)
	}
}
