package cutemarkets

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cutemarkets/relay/services/edge/internal/dialect"
)

func decode(market, message string) *dialect.Command {
	c := &dialect.Command{}
	both().Decode(market, []byte(message), c)
	return c
}

func TestDecodeAnswersWhatIsNoCommand(t *testing.T) {
	deep := strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000)
	for _, c := range []struct {
		name, message string
		reply         []byte
		malformed     bool
	}{
		{"nothing", ``, replyInvalid, true},
		{"not JSON", `subscribe T.AAPL`, replyInvalid, true},
		{"cut", `{"action":"subscribe"`, replyInvalid, true},
		{"two objects", `{}{}`, replyInvalid, true},
		{"array", ` [{"action":"subscribe"}]`, replyNoObject, true},
		{"number", `1e400`, replyNoObject, true},
		{"string", `"subscribe"`, replyNoObject, true},
		{"null", `null`, replyNoObject, true},
		{"depth 10,000", deep, replyNoObject, true},
		{"depth beyond", "[" + deep + "]", replyInvalid, true},
		{"empty object", `{}`, replyNoAction, true},
		{"action is a number", `{"action":1}`, replyNoAction, true},
		{"action in another case", `{"Action":"subscribe","params":"T.A"}`, replyNoAction, true},
		{"unknown action", `{"action":"dance","params":"T.A"}`, replyAction, false},
		{"empty action", `{"action":""}`, replyAction, false},
		{"no params", `{"action":"subscribe"}`, replyNoParams, false},
		{"params null", `{"action":"subscribe","params":null}`, replyNoParams, false},
		{"params a list", `{"action":"subscribe","params":["T.A"]}`, replyNoParams, false},
		{"params deep", `{"action":"subscribe","params":` + deep[1:len(deep)-1] + `}`, replyNoParams, false},
		{"params empty", `{"action":"subscribe","params":""}`, replyNoParams, false},
		{"params of commas", `{"action":"unsubscribe","params":" ,,\t, "}`, replyNoParams, false},
		{"1,001 params", `{"action":"subscribe","params":"T.A` + strings.Repeat(",T.A", 1000) + `"}`, replyTooMany, false},
		{"last action counts", `{"action":"subscribe","params":"T.A","action":"dance"}`, replyAction, false},
		{"last params count", `{"action":"subscribe","params":"T.A","params":1}`, replyNoParams, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decode("stocks", c.message)
			if got.Op != dialect.OpNone || string(got.Reply) != string(c.reply) || got.Malformed != c.malformed || len(got.Params) > 0 {
				t.Errorf("op %d, reply %s, malformed %t, %d params", got.Op, got.Reply, got.Malformed, len(got.Params))
			}
		})
	}
}

func TestDecodeTopics(t *testing.T) {
	for _, c := range []struct {
		name, message string
		op            dialect.Op
		want          []string
	}{
		{"one", `{"action":"subscribe","params":"T.AAPL"}`, dialect.OpSubscribe, []string{"T.AAPL"}},
		{"list with spaces", `{"action":"unsubscribe","params":" T.A , AM.*,,Q.B\t,"}`, dialect.OpUnsubscribe, []string{"T.A", "AM.*", "Q.B"}},
		{"escapes", `{"\u0061ction":"sub\u0073cribe","params":"T\u002eA\u002cT.B"}`, dialect.OpSubscribe, []string{"T.A", "T.B"}},
		{"white space and other keys", "\r\n{ \"x\" : {\"action\":[\"}\",\"\\\"\"]} ,\t\"params\" : \"T.A\" , \"n\":-1.5e3,\"t\":true, \"action\" :\"subscribe\" }\n", dialect.OpSubscribe, []string{"T.A"}},
		{"last of equal keys", `{"params":"T.A","action":"dance","params":"T.B","action":"subscribe"}`, dialect.OpSubscribe, []string{"T.B"}},
		{"the same twice", `{"action":"subscribe","params":"T.A,T.A"}`, dialect.OpSubscribe, []string{"T.A", "T.A"}},
		{"1,000", `{"action":"subscribe","params":"T.A` + strings.Repeat(",T.A", 999) + `,"}`, dialect.OpSubscribe, slices.Repeat([]string{"T.A"}, 1000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := decode("stocks", c.message)
			var topics []string
			for _, p := range got.Params {
				topics = append(topics, p.Topic)
				if p.Problem != "" || p.Text != p.Topic {
					t.Errorf("%+v", p)
				}
			}
			if got.Op != c.op || !slices.Equal(topics, c.want) || got.Reply != nil || got.Malformed {
				t.Errorf("op %d, topics %q, reply %s", got.Op, topics, got.Reply)
			}
		})
	}
}

func TestDecodeCredential(t *testing.T) {
	for name, c := range map[string]struct{ message, key string }{
		"key":       {`{"action":"auth","params":"cm_abc"}`, "cm_abc"},
		"escaped":   {`{"action":"auth","params":"cm\u005fabc"}`, "cm_abc"},
		"missing":   {`{"action":"auth"}`, ""},
		"number":    {`{"action":"auth","params":1}`, ""},
		"empty":     {`{"action":"auth","params":""}`, ""},
		"space":     {`{"action":"auth","params":" cm_abc"}`, ""},
		"non-ASCII": {`{"action":"auth","params":"cm_é"}`, ""},
		"too long":  {`{"action":"auth","params":"` + strings.Repeat("k", 257) + `"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := decode("stocks", c.message)
			if got.Op != dialect.OpSignin || got.Credential.Reveal() != c.key || got.Reply != nil || got.Malformed {
				t.Errorf("op %d, key %q, reply %s", got.Op, got.Credential.Reveal(), got.Reply)
			}
		})
	}
}

func TestDecodeOverwritesTheCommand(t *testing.T) {
	d := both()
	c := &dialect.Command{}
	for _, message := range []string{`{"action":"auth","params":"cm_a"}`, `{"action":"subscribe","params":"T.A"}`, `x`, `{"action":"dance"}`} {
		d.Decode("stocks", []byte(message), c)
	}
	if c.Op != dialect.OpNone || len(c.Params) > 0 || !c.Credential.Empty() || c.Malformed {
		t.Errorf("%+v", *c)
	}
}

func TestTopics(t *testing.T) {
	long := strings.Repeat("A", 64)
	for _, c := range []struct{ market, topic, problem string }{
		{"stocks", "T.AAPL", ""}, {"stocks", "Q.*", ""}, {"stocks", "A.BRK.A", ""}, {"stocks", "AM.*", ""},
		{"stocks", "LULD.*", ""}, {"stocks", "NOI.IBM", ""}, {"stocks", "FMV.*", ""}, {"stocks", "LV.X", ""},
		{"stocks", "T.BACpB", ""}, {"stocks", "T.ABCw", ""}, {"stocks", "T.ABCr.A", ""}, {"stocks", "T." + long, ""},
		{"stocks", "T.8888", ""},
		{"stocks", "T.aapl", problemStock}, {"stocks", "T.pA", problemStock}, {"stocks", "T.AAPl", problemStock},
		{"stocks", "T..A", problemStock}, {"stocks", "T.A*", problemStock}, {"stocks", "T.A B", problemStock},
		{"stocks", "T.A\r\n", problemStock}, {"stocks", `T."A"`, problemStock}, {"stocks", "T.É", problemStock},
		{"stocks", "T.X:BTCUSD", problemStock},
		{"stocks", "T." + long + "A", problemLong},
		{"stocks", "T.O:SPY260515C00500000", problemOtherMarket},
		{"stocks", "*", problemForm}, {"stocks", "T", problemForm}, {"stocks", "T.", problemForm}, {"stocks", "AAPL", problemForm},
		{"stocks", ".AAPL", markets["stocks"].unknown}, {"stocks", "ZZ.AAPL", markets["stocks"].unknown},
		{"stocks", "t.AAPL", markets["stocks"].unknown}, {"stocks", "*.AAPL", markets["stocks"].unknown},
		{"stocks", "XT.*", markets["stocks"].unknown},

		{"options", "T.O:SPY260515C00500000", ""}, {"options", "Q.O:SPY260515C00500000", ""}, {"options", "T.*", ""},
		{"options", "A.*", ""}, {"options", "AM.*", ""}, {"options", "LV.*", ""}, {"options", "FMV.O:SPXW260515P05000000", ""},
		{"options", "Q.*", problemWildcard}, {"options", "FMV.*", problemWildcard},
		{"options", "LULD.*", markets["options"].unknown}, {"options", "NOI.A", markets["options"].unknown},
		{"options", "T.AAPL", problemOption}, {"options", "T.O:", problemOption}, {"options", "T.O:.A", problemOption},
		{"options", "T.o:SPY260515C00500000", problemOption}, {"options", "T.O:SPY260515c00500000", problemOption},
		{"options", "T.O:*", problemOption}, {"options", "T.O:O:A", problemOption},
	} {
		if got := markets[c.market].topicProblem([]byte(c.topic)); got != c.problem {
			t.Errorf("%s %q: %q, want %q", c.market, c.topic, got, c.problem)
		}
	}
}

func TestRefusedParamsAreEchoedSafely(t *testing.T) {
	for item, want := range map[string]string{
		`T.\"\\\u0000\n`:                      "T.\"\\\x00\n",
		`T.\u00e9`:                            "T.é",
		`T.\ud800`:                            "T.�",
		strings.Repeat("x", 9999):             strings.Repeat("x", 64),
		"x" + strings.Repeat("é", 100):        "x" + strings.Repeat("é", 31),
		"cm_secret":                           redactedParam,
		"T.Acm_secret":                        redactedParam,
		strings.Repeat("x", 70) + "cm_secret": redactedParam,
	} {
		c := decode("stocks", `{"action":"subscribe","params":"`+item+`"}`)
		if len(c.Params) != 1 || c.Params[0].Problem == "" || c.Params[0].Text != want {
			t.Errorf("%s: %+v", item, c.Params)
			continue
		}
		var got []struct{ Message string }
		if err := json.Unmarshal(both().Reply(c), &got); err != nil || !strings.HasPrefix(got[0].Message, "cannot subscribe to: "+want+": ") {
			t.Errorf("%s: %v %q", item, err, got)
		}
	}
}

func TestReplyFitsAFrame(t *testing.T) {
	d := both()
	for name, item := range map[string]string{
		"accepted":   "T." + strings.Repeat("A", 62),
		"refused":    strings.Repeat("a", 64),
		"escaped":    strings.Repeat(`\"`, 32),
		"controls":   strings.Repeat(`\u0001`, 10),
		"surrogates": strings.Repeat(`\ud800`, 10),
	} {
		for _, action := range []string{"subscribe", "unsubscribe"} {
			message := `{"action":"` + action + `","params":"` + strings.Repeat(item+",", min(maxParams, (DefaultMaxMessage-40)/(len(item)+1))) + `"}`
			if len(message) > DefaultMaxMessage {
				t.Fatalf("%s: message of %d bytes", name, len(message))
			}
			c := decode("options", message)
			if c.Op == dialect.OpNone {
				t.Fatalf("%s: %s", name, c.Reply)
			}
			if reply := d.Reply(c); !json.Valid(reply) || len(reply) > 256<<10 {
				t.Errorf("%s: reply of %d bytes", name, len(reply))
			}
		}
	}
}

// FuzzDecode checks the parser against encoding/json, and that every reply is a
// JSON array of status objects without a byte of a key.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		`{"action":"subscribe","params":"T.AAPL, AM.*,x"}`, `{"action":"auth","params":"KEY"}`, `{}`, `[1]`, ``,
		`{"a":[{"}":"]"}],"action":"unsubscribe","params":"T.O:SPY260515C00500000,KEY"}`, `{"params":"\ud83d","action":"\u0061uth"}`,
	} {
		f.Add([]byte(seed), true)
	}
	const canary = "0123456789canary"
	d := both()
	f.Fuzz(func(t *testing.T, message []byte, stocks bool) {
		message = []byte(strings.ReplaceAll(string(message), "KEY", "cm_"+canary))
		if !utf8.Valid(message) {
			return // refused before it gets here, RFC 6455 section 8.1
		}
		market := "options"
		if stocks {
			market = "stocks"
		}
		before := string(message)
		c := &dialect.Command{}
		d.Decode(market, message, c)
		if string(message) != before {
			t.Fatal("message changed")
		}
		checkAgainstEncodingJSON(t, message, c)
		reply := c.Reply
		switch c.Op {
		case dialect.OpSubscribe, dialect.OpUnsubscribe:
			if reply != nil || len(c.Params) == 0 || len(c.Params) > maxParams {
				t.Fatalf("%d params, reply %s", len(c.Params), reply)
			}
			reply = d.Reply(c)
		case dialect.OpSignin:
			reply = d.Signin(dialect.CredentialInvalid)
		}
		checkStatuses(t, reply)
		if strings.Contains(string(reply), canary) && strings.Contains(before, "cm_"+canary) {
			t.Fatalf("key in the reply %s", reply)
		}
	})
}

func checkAgainstEncodingJSON(t *testing.T, message []byte, c *dialect.Command) {
	t.Helper()
	var object map[string]json.RawMessage
	var action, params string
	if json.Unmarshal(message, &object) != nil || object == nil {
		if !c.Malformed {
			t.Fatal("taken for a command")
		}
		return
	}
	raw := object["action"]
	isText := len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &action) == nil
	if isText == c.Malformed {
		t.Fatalf("action %s, malformed %t", raw, c.Malformed)
	}
	if raw = object["params"]; len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &params) != nil {
		params = ""
	}
	switch {
	case action == "auth":
		want := ""
		if plausible(params) {
			want = params
		}
		if c.Op != dialect.OpSignin || c.Credential.Reveal() != want {
			t.Fatalf("auth read as op %d", c.Op)
		}
	case action == "subscribe" || action == "unsubscribe":
		var items []string
		for item := range strings.SplitSeq(params, ",") {
			if item = strings.Trim(item, " \t"); item != "" {
				items = append(items, item)
			}
		}
		if len(items) == 0 || len(items) > maxParams {
			if c.Op != dialect.OpNone {
				t.Fatalf("%d params read as op %d", len(items), c.Op)
			}
			return
		}
		if len(c.Params) != len(items) {
			t.Fatalf("%d params, want %d", len(c.Params), len(items))
		}
		for i, p := range c.Params {
			if p.Problem == "" && p.Topic != items[i] || p.Problem != "" && (p.Topic != "" || len(p.Text) > echoLimit) {
				t.Fatalf("%q read as %+v", items[i], p)
			}
		}
	case c.Op != dialect.OpNone:
		t.Fatalf("action %q read as op %d", action, c.Op)
	}
}

func BenchmarkDecode(b *testing.B) {
	d := both()
	thousand := `{"action":"subscribe","params":"` + strings.Repeat("T.O:SPY260515C00500000,", 1000) + `"}`
	for name, message := range map[string]string{"1": `{"action":"subscribe","params":"T.O:SPY260515C00500000"}`, "1000": thousand} {
		b.Run(name, func(b *testing.B) {
			c := &dialect.Command{}
			b.ReportAllocs()
			b.SetBytes(int64(len(message)))
			for b.Loop() {
				d.Decode("options", []byte(message), c)
			}
		})
	}
}
