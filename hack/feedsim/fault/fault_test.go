package fault

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cutemarkets/relay/hack/feedsim/tape"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Command{
		"drop market=stocks":                   {Name: Drop, Market: tape.Stocks},
		"close":                                {Name: Close, Code: 1000},
		"close code=4000":                      {Name: Close, Code: 4000},
		"slow":                                 {Name: Slow},
		"huge":                                 {Name: Huge, Size: 200_000},
		"huge size=3145728":                    {Name: Huge, Size: 3 << 20},
		"limit rule=reject-newest":             {Name: Limit, Mode: RejectNewest},
		"resume":                               {Name: Resume},
		"outage for=3s":                        {Name: Outage, For: 3 * time.Second},
		"stall":                                {Name: Stall},
		"stall for=1m market=options":          {Name: Stall, For: time.Minute, Market: tape.Options},
		"ghost hold=5s next=1":                 {Name: Ghost, Hold: 5 * time.Second, Next: 1},
		"auth-failed next=3":                   {Name: AuthFailed, Next: 3},
		"auth-silent for=1s":                   {Name: AuthSilent, For: time.Second},
		"no-ack topics=T.A,Q.* deliver=true":   {Name: NoAck, Topics: []string{"T.A", "Q.*"}, Deliver: true},
		"no-ack every=3":                       {Name: NoAck, Every: 3},
		"acks mode=joined":                     {Name: Acks, Mode: Joined, Hold: 200 * time.Millisecond},
		"acks mode=split hold=1s":              {Name: Acks, Mode: Split, Hold: time.Second},
		"unauthorized prefix=NOI,T":            {Name: Unauthorized, Prefixes: []tape.Kind{tape.Imbalance, tape.Trade}, Mode: Before},
		"unauthorized prefix=Q order=after":    {Name: Unauthorized, Prefixes: []tape.Kind{tape.Quote}, Mode: After},
		"malformed kind=utf8":                  {Name: Malformed, Mode: BadUTF8, Next: 1},
		"malformed kind=object for=1s":         {Name: Malformed, Mode: Object, For: time.Second},
		"malformed kind=garbage next=2 for=1s": {Name: Malformed, Mode: Garbage, Next: 2, For: time.Second},
		"types":                                {Name: Types, Every: 1},
		"sequence mode=falling":                {Name: Sequence, Mode: Falling},
	} {
		if got, err := parse(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"shrug":                    "no such fault",
		"drop market=crypto":       "market",
		"drop for=3s":              "takes no for",
		"outage":                   "for is missing",
		"outage for=0s":            "for: want a duration",
		"stall for=soon":           "for: want a duration",
		"ghost":                    "hold is missing",
		"auth-failed next=0":       "next: want a number",
		"close code=999":           "code: want a number",
		"close code=1006":          "cannot be sent",
		"huge size=1":              "size: want a number",
		"limit":                    "rule is missing",
		"limit rule=none":          "rule: want one of",
		"malformed":                "kind is missing",
		"malformed kind=other":     "kind: want one of",
		"unauthorized":             "prefix is missing",
		"unauthorized prefix=T,XX": "prefix",
		"no-ack deliver=perhaps":   "deliver: want true or false",
	} {
		if c, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %s", text, c, err, want)
		}
	}
	if _, err := Parse("shrug", nil); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

// parse reads a command as a line of a script has it.
func parse(text string) (Command, error) {
	words := strings.Fields(text)
	arguments := map[string]string{}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		arguments[key] = value
	}
	return Parse(words[0], arguments)
}

func TestNames(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for n := range Names {
		name := Name(n).String()
		if name == "" || seen[name] {
			t.Errorf("%d is called %q", n, name)
		}
		seen[name] = true
	}
}

// TestState goes through the life of modes, by the second.
func TestState(t *testing.T) {
	t.Parallel()
	var s State
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	start := func(text string, seconds int) {
		t.Helper()
		c, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		s.Start(c, at(seconds))
	}
	active := func(n Name, seconds int, want bool) {
		t.Helper()
		if got := s.Active(n, at(seconds)) != nil; got != want {
			t.Errorf("%s at %d: %v", n, seconds, got)
		}
	}
	active(Stall, 0, false)
	start("stall", 0)
	active(Stall, 1_000_000, true)
	start("stall for=3s", 0)
	active(Stall, 2, true)
	active(Stall, 3, false)

	start("auth-failed next=2", 0)
	for i, want := range []bool{true, true, false} {
		if fail, silent := s.Auth(at(i)); fail != want || silent {
			t.Errorf("key %d: %v, %v", i, fail, silent)
		}
	}
	start("auth-silent next=1", 0)
	start("auth-failed", 0)
	if fail, silent := s.Auth(at(1)); fail || !silent {
		t.Error("the silence does not come first")
	}

	start("no-ack every=2 deliver=true", 0)
	for i, want := range []bool{false, true, false, true} {
		if withheld, deliver := s.NoAck("T.A", at(i)); withheld != want || deliver != want {
			t.Errorf("topic %d: %v, %v", i, withheld, deliver)
		}
	}
	start("no-ack topics=T.A next=1", 0)
	for topic, want := range map[string]bool{"T.B": false, "T.A": true} {
		if withheld, deliver := s.NoAck(topic, at(0)); withheld != want || deliver {
			t.Errorf("%s: %v, %v", topic, withheld, deliver)
		}
	}
	start("unauthorized prefix=T order=after", 0)
	if refused, after := s.Unauthorized(tape.Trade, at(0)); !refused || !after {
		t.Error("trades are not refused")
	}
	if refused, _ := s.Unauthorized(tape.Quote, at(0)); refused {
		t.Error("quotes are refused")
	}
	s.Count(Drop, 5)
	s.Clear()
	for n := range Names {
		active(Name(n), 0, false)
	}
	want := map[string]uint64{"auth-failed": 2, "auth-silent": 1, "no-ack": 3, "unauthorized": 1, "drop": 5}
	if got := s.Done(); !reflect.DeepEqual(got, want) {
		t.Errorf("done %v, want %v", got, want)
	}
}

func TestScript(t *testing.T) {
	t.Parallel()
	const text = `
# a comment
+3s  drop market=stocks
+1s	stall for=500ms

random drop count=10 within=60s after=5s apart=2s market=options
+0s quiesce
`
	steps, err := ParseScript(strings.NewReader(text), 1)
	if err != nil || len(steps) != 13 {
		t.Fatalf("%v, %v", steps, err)
	}
	if steps[0].Command.Name != Quiesce || steps[1].Command.Name != Stall || steps[2].At != 3*time.Second {
		t.Errorf("%v", steps)
	}
	for i, step := range steps[3:] {
		if !reflect.DeepEqual(step.Command, Command{Name: Drop, Market: tape.Options}) {
			t.Errorf("%+v", step)
		}
		if step.At < 5*time.Second || step.At > 65*time.Second || (i > 0 && step.At-steps[2+i].At < 2*time.Second) {
			t.Errorf("at %s, after %s", step.At, steps[2+i].At)
		}
	}
	again, _ := ParseScript(strings.NewReader(text), 1)
	other, _ := ParseScript(strings.NewReader(text), 2)
	if !reflect.DeepEqual(steps, again) || reflect.DeepEqual(steps, other) {
		t.Error("the times do not follow from the seed")
	}
	for line, want := range map[string]string{
		"+1s":                                    "want a time and a fault",
		"1s drop":                                "such as +3s",
		"+-1s drop":                              "such as +3s",
		"+1s shrug":                              "no such fault",
		"+1s stall for":                          "want key=value",
		"+1s stall for=1s for=2s":                "each key once",
		"+1s drop count=1":                       "takes no count",
		"random drop within=1s":                  "count: want a number",
		"random drop count=1":                    "within: want a duration",
		"random drop count=3 within=4s apart=2s": "no room",
		"random drop count=3 within=4s apart=2562047h":    "no room",
		"random drop count=1 within=1s after=x":           "after: want a duration",
		"random outage count=1 within=1s":                 "for is missing",
		"random drop count=1 within=1s next=1":            "takes no next",
		"random drop count=1000000 within=1s market=stoc": "count: want a number",
	} {
		if _, err := ParseScript(strings.NewReader("\n"+line), 1); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
}
