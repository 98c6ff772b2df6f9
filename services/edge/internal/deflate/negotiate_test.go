package deflate

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gobwas/httphead"
	"github.com/gobwas/ws/wsflate"
	"pgregory.net/rapid"
)

const (
	offered = "permessage-deflate"
	window  = "; server_max_window_bits=15"
)

func TestNegotiate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		offers []string
		want   string
	}{
		{"nothing", nil, ""},
		{"empty", []string{""}, ""},
		{"empty elements", []string{" , ,, ", "\t"}, ""},
		{"bare", []string{offered}, answer},
		{"empty elements around", []string{",, " + offered + "\t ,"}, answer},
		{"another extension", []string{"x-webkit-deflate-frame"}, ""},
		{"its name in another's", []string{"permessage-deflate-2, xpermessage-deflate"}, ""},
		{"its name as parameter", []string{"x; permessage-deflate"}, ""},
		{"its name in a string", []string{`x; y=", permessage-deflate"`}, ""},
		{"in capitals", []string{"Permessage-Deflate"}, ""},
		{"behind another", []string{"x; y=1; z, permessage-deflate"}, answer},
		{"behind a string with commas", []string{`x; y="a,\",b;", permessage-deflate`}, answer},
		{"on the second line", []string{"x", offered}, answer},
		{"of a browser", []string{"permessage-deflate; client_max_window_bits"}, answer},
		{"of Safari before 16", []string{"x-webkit-deflate-frame, permessage-deflate; client_max_window_bits"}, answer},

		{"server takeover", []string{offered + "; server_no_context_takeover"}, answer},
		{"client takeover", []string{offered + "; client_no_context_takeover"}, answer},
		{"both", []string{offered + ";client_no_context_takeover;server_no_context_takeover"}, answer},
		{"server takeover with a value", []string{offered + "; server_no_context_takeover=true"}, ""},
		{"client takeover with a value", []string{offered + "; client_no_context_takeover=1"}, ""},
		{"takeover with an empty value", []string{offered + "; client_no_context_takeover="}, ""},

		{"client window, bare", []string{offered + "; client_max_window_bits"}, answer},
		{"client window, empty", []string{offered + "; client_max_window_bits="}, ""},
		{"client window, quoted", []string{offered + `; client_max_window_bits="12"`}, answer},
		{"client window, empty string", []string{offered + `; client_max_window_bits=""`}, ""},
		{"client window, half a string", []string{offered + `; client_max_window_bits="12`}, ""},
		{"client window 7", []string{offered + "; client_max_window_bits=7"}, ""},
		{"client window 16", []string{offered + "; client_max_window_bits=16"}, ""},
		{"client window 08", []string{offered + "; client_max_window_bits=08"}, ""},
		{"client window 1e1", []string{offered + "; client_max_window_bits=1e1"}, ""},
		{"client window -8", []string{offered + "; client_max_window_bits=-8"}, ""},
		{"client window with spaces", []string{offered + "\t;  client_max_window_bits =\t15 "}, answer},

		{"server window 15", []string{offered + window}, answerWindow},
		{"server window 15, quoted", []string{offered + `; server_max_window_bits="15"`}, answerWindow},
		{"server window, bare", []string{offered + "; server_max_window_bits"}, ""},
		{"server window 14", []string{offered + "; server_max_window_bits=14"}, ""},
		{"server window 8", []string{offered + "; server_max_window_bits=8"}, ""},
		{"server window 16", []string{offered + "; server_max_window_bits=16"}, ""},
		{"all four", []string{offered + "; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=10" + window}, answerWindow},

		{"unknown parameter", []string{offered + "; nonsense=1"}, ""},
		{"unknown behind good", []string{offered + "; client_max_window_bits; nonsense"}, ""},
		{"parameter without a name", []string{offered + "; =15"}, ""},
		{"nothing behind a semicolon", []string{offered + ";"}, ""},
		{"parameter in capitals", []string{offered + "; Client_Max_Window_Bits"}, ""},
		{"server takeover twice", []string{offered + "; server_no_context_takeover; server_no_context_takeover"}, ""},
		{"client takeover twice", []string{offered + "; client_no_context_takeover; client_no_context_takeover"}, ""},
		{"client window twice", []string{offered + "; client_max_window_bits; client_max_window_bits=15"}, ""},
		{"server window twice", []string{offered + window + window}, ""},
		{"a quote", []string{offered + `; "=,;`}, ""},

		{"fallback to bare", []string{offered + "; server_max_window_bits=10, " + offered}, answer},
		{"fallback to the other window", []string{offered + "; server_max_window_bits=8, " + offered + window}, answerWindow},
		{"fallback on another line", []string{offered + "; nonsense", "x", offered + "; client_max_window_bits"}, answer},
		{"the first that is good wins", []string{offered + window + ", " + offered}, answerWindow},
		{"no fallback is good", []string{offered + "; server_max_window_bits=8, " + offered + "; server_max_window_bits=9"}, ""},
	} {
		if got, ok := Negotiate(c.offers); got != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v; want %q", c.name, got, ok, c.want)
		}
	}
	for bits := 8; bits <= 15; bits++ {
		if got, _ := Negotiate([]string{fmt.Sprintf("permessage-deflate; client_max_window_bits=%d", bits)}); got != answer {
			t.Errorf("client window %d: %q", bits, got)
		}
	}
}

// TestNegotiateAgreesWithGobwas compares what is accepted of well-formed offers
// with what gobwas/ws reads out of them.
func TestNegotiateAgreesWithGobwas(t *testing.T) {
	t.Parallel()
	param := rapid.SampledFrom([]string{
		"server_no_context_takeover", "client_no_context_takeover", "client_max_window_bits", "client_max_window_bits=9",
		`client_max_window_bits="15"`, "client_max_window_bits=16", "server_max_window_bits=15", "server_max_window_bits=9", "x", "x=y", "server_no_context_takeover=1",
	})
	name := rapid.SampledFrom([]string{offered, offered, offered, "x"})
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(append([]string{name.Draw(t, "name")}, rapid.SliceOfNDistinct(param, 0, 3, func(s string) string {
				s, _, _ = strings.Cut(s, "=") // gobwas keeps one of repeated parameters
				return s
			}).Draw(t, "params")...), "; ")
		}), 1, 3), 1, 3).Draw(t, "lines")
		want := ""
		offers := make([]string, len(lines))
		for i, line := range lines {
			offers[i] = strings.Join(line, ", ")
			options, ok := httphead.ParseOptions([]byte(offers[i]), nil)
			if !ok {
				t.Fatalf("gobwas cannot read %q", offers[i])
			}
			for _, o := range options {
				var p wsflate.Parameters
				if want != "" || string(o.Name) != offered || p.Parse(o) != nil || p.ServerMaxWindowBits.Defined() && p.ServerMaxWindowBits != 15 {
					continue
				}
				want = answer
				if p.ServerMaxWindowBits.Defined() {
					want = answerWindow
				}
			}
		}
		if got, ok := Negotiate(offers); got != want || ok != (want != "") {
			t.Fatalf("%q: %q, %v; want %q", offers, got, ok, want)
		}
	})
}

func TestNegotiateAllocatesNothing(t *testing.T) {
	offers := []string{"x-webkit-deflate-frame", "permessage-deflate; server_max_window_bits=8, permessage-deflate; client_max_window_bits=\"15\""}
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := Negotiate(offers); !ok {
			t.Fatal("declined")
		}
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// FuzzNegotiate holds that an answer is one of the two, to an offer that is there
// and asks for it, and that what cannot be accepted changes nothing before it.
func FuzzNegotiate(f *testing.F) {
	f.Add("permessage-deflate; client_max_window_bits", "permessage-deflate")
	f.Add(`permessage-deflate; server_max_window_bits="1\5", x; y="a,b"`, "permessage-deflate; server_max_window_bits=15")
	f.Add(`permessage-deflate; "=,;`, ",")
	f.Fuzz(func(t *testing.T, one, two string) {
		response, ok := Negotiate([]string{one, two})
		all := one + "," + two
		switch {
		case !ok && response == "":
		case ok && response == answer && strings.Contains(all, offered):
		case ok && response == answerWindow && strings.Contains(all, "server_max_window_bits") && strings.Contains(all, "15"):
		default:
			t.Fatalf("%q, %v to %q and %q", response, ok, one, two)
		}
		first, ok := Negotiate([]string{one})
		if ok && first != response {
			t.Fatalf("%q alone %q, with another line behind %q", one, first, response)
		}
		if second, _ := Negotiate([]string{two}); !ok && second != response {
			t.Fatalf("%q alone %q, with a declined line before %q", two, second, response)
		}
	})
}
