package config

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type testOptions struct {
	LogLevel string        `name:"log-level" enum:"debug,info" default:"info" help:"Least level."`
	Grace    time.Duration `default:"5s" help:"How long to wait."`
	Redis    testAddress   `embed:"" prefix:"redis-"`
	Pprof    bool          `help:"Serve profiles."`
	Hidden   string        `kong:"-"`
}

type testAddress struct {
	Address      string `required:"" placeholder:"HOST:PORT" help:"Where it is."`
	PasswordFile string `placeholder:"FILE" help:"File with the password."`
}

var errGrace = errors.New("--grace must not be negative")

func (o *testOptions) Validate() error {
	if o.Grace < 0 {
		return errGrace
	}
	return nil
}

func TestParseTakesFlagsThenEnvironmentThenDefaults(t *testing.T) {
	t.Setenv("RELAY_GRACE", "7s")
	t.Setenv("RELAY_REDIS_ADDRESS", "redis:6379")
	t.Setenv("RELAY_PPROF", "true")
	var got testOptions
	if err := Parse("relay-test", "Tests.", []string{"--grace=9s"}, &got); err != nil {
		t.Fatal(err)
	}
	want := testOptions{LogLevel: "info", Grace: 9 * time.Second, Redis: testAddress{Address: "redis:6379"}, Pprof: true}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseSaysWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		env  string
		want []string
	}{
		{"missing", nil, "", []string{"missing flags: --redis-address=HOST:PORT"}},
		{"unknown flag", []string{"--redis-addrss=x"}, "", []string{"unknown flag --redis-addrss", `did you mean "--redis-address"?`}},
		{"bad value", []string{"--redis-address=x", "--grace=5"}, "", []string{"--grace"}},
		{"bad enumeration", []string{"--redis-address=x", "--log-level=loud"}, "", []string{"--log-level", `"debug"`, `"info"`, `"loud"`}},
		{"invalid", []string{"--redis-address=x", "--grace=-1s"}, "", []string{errGrace.Error()}},
		{"stray argument", []string{"--redis-address=x", "serve"}, "", []string{"unexpected argument serve"}},
		{"bad variable", []string{"--redis-address=x"}, "RELAY_GRACE=5", []string{"--grace", "RELAY_GRACE"}},
		{"misspelt variable", nil, "RELAY_REDIS_ADDRSS=x", []string{
			"unknown environment variable RELAY_REDIS_ADDRSS: did you mean RELAY_REDIS_ADDRESS?", "missing flags: --redis-address"}},
		{"misspelt variable beside good flags", []string{"--redis-address=x"}, "RELAY_GRAZE=", []string{"RELAY_GRAZE: did you mean RELAY_GRACE?"}},
		{"foreign variable", []string{"--redis-address=x"}, "RELAY_WHATEVER_THIS_MAY_BE=1", []string{"RELAY_WHATEVER_THIS_MAY_BE: unset it"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if name, value, ok := strings.Cut(tt.env, "="); ok {
				t.Setenv(name, value)
			}
			err := Parse("relay-test", "Tests.", tt.args, &testOptions{})
			var usage *UsageError
			if !errors.As(err, &usage) || usage.ExitCode() != 2 {
				t.Fatalf("Parse: %v, want a UsageError", err)
			}
			for _, want := range append(tt.want, "(see relay-test --help)") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Parse: %v, want %q", err, want)
				}
			}
		})
	}
}

func TestValidateErrorKeepsItsKind(t *testing.T) {
	if err := Parse("relay-test", "", []string{"--redis-address=x", "--grace=-1s"}, &testOptions{}); !errors.Is(err, errGrace) {
		t.Errorf("Parse: %v", err)
	}
}

// exited is how a test sees the call of os.Exit.
type exited int

func parseToExit(t *testing.T, grammar any, args ...string) (status int, output string) {
	t.Helper()
	var buf bytes.Buffer
	p := parser{program: "relay-test", description: "Tests the rest.", stdout: &buf, exit: func(code int) { panic(exited(code)) }}
	defer func() {
		code, ok := recover().(exited)
		if !ok {
			t.Error("the parser did not exit")
		}
		status, output = int(code), buf.String()
	}()
	_, err := p.parse(args, grammar)
	t.Errorf("parse: %v", err)
	return 0, ""
}

func TestHelpAndVersionExitWithZero(t *testing.T) {
	t.Setenv("RELAY_UNKNOWN_NAME", "does not keep anybody from the help")
	status, help := parseToExit(t, &testOptions{}, "--help")
	for _, want := range []string{"Usage: relay-test", "Tests the rest.", "--redis-address=HOST:PORT", "($RELAY_REDIS_ADDRESS)", "--version"} {
		if status != 0 || !strings.Contains(help, want) {
			t.Errorf("--help: status %d, want %q in %s", status, want, help)
		}
	}
	status, version := parseToExit(t, &testOptions{}, "--version")
	if status != 0 || !strings.HasPrefix(version, "relay-test ") || !strings.Contains(version, "go1.") {
		t.Errorf("--version: status %d, %q", status, version)
	}
}

type testCommands struct {
	Store string `default:"relay.db" help:"Database."`
	Serve struct {
		Pepper string `required:"" help:"File with the pepper."`
	} `cmd:"" help:"Serve."`
	Keys struct {
		Create struct {
			User   string `arg:"" help:"User."`
			Pepper string `required:"" help:"File with the pepper."`
			Plan   string `default:"expert" help:"Plan."`
		} `cmd:"" help:"Create a key."`
	} `cmd:"" help:"Manage keys."`
}

func TestParseCommands(t *testing.T) {
	t.Setenv("RELAY_PEPPER", "/pepper")
	var c testCommands
	ctx, err := ParseCommands("relay-auth", "Auth.", []string{"keys", "create", "ada", "--plan=basic"}, &c)
	if err != nil {
		t.Fatal(err)
	}
	if ctx.Command() != "keys create <user>" {
		t.Errorf("command %q", ctx.Command())
	}
	create := c.Keys.Create
	if create.User != "ada" || create.Plan != "basic" || create.Pepper != "/pepper" || c.Store != "relay.db" {
		t.Errorf("parsed %+v", c)
	}
	if _, err := ParseCommands("relay-auth", "Auth.", nil, &testCommands{}); err == nil || !strings.Contains(err.Error(), `expected one of "serve", "keys"`) {
		t.Errorf("without a command: %v", err)
	}
	if status, help := parseToExit(t, &testCommands{}, "keys", "create", "--help"); status != 0 || !strings.Contains(help, "--plan") {
		t.Errorf("help of a command: %d, %s", status, help)
	}
}

func TestEmptyVariableIsNotSet(t *testing.T) {
	t.Setenv("RELAY_LOG_LEVEL", "")
	t.Setenv("RELAY_GRACE", "")
	t.Setenv("RELAY_REDIS_ADDRESS", "r:1")
	var o testOptions
	if err := Parse("relay-test", "", nil, &o); err != nil {
		t.Fatal(err)
	}
	if o.LogLevel != "info" || o.Grace != 5*time.Second {
		t.Errorf("%+v, want the defaults", o)
	}
}

func TestGrammarWithReservedNames(t *testing.T) {
	for _, grammar := range []any{
		&struct{ RedisPort int }{},
		&struct{ RedisHost string }{},
		&struct{ RedisServicePortName string }{},
		&struct {
			X string `env:"RELAY_PORT_80_TCP_ADDR"`
		}{},
	} {
		if _, err := ParseCommands("relay-test", "", nil, grammar); err == nil || !strings.Contains(err.Error(), "Kubernetes") {
			t.Errorf("%T: %v", grammar, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	own := []string{"RELAY_LISTEN", "RELAY_OPERATIONS_LISTEN"}
	for entry, known := range map[string]bool{
		"RELAY_LISTEN=:8080":                        true,
		"RELAY_LISTEN=":                             true,
		"PATH=/bin":                                 true,
		"RELAY=1":                                   true,
		"RELAYS_LISTEN=1":                           true,
		"relay_listen=1":                            true,
		"RELAY_SERVICE_HOST=10.0.0.1":               true,
		"RELAY_SERVICE_PORT=80":                     true,
		"RELAY_PORT=tcp://10.0.0.1:80":              true,
		"RELAY_EDGE_SERVICE_HOST=10.0.0.1":          true,
		"RELAY_EDGE_SERVICE_PORT=80":                true,
		"RELAY_EDGE_SERVICE_PORT_WS_TLS=443":        true,
		"RELAY_EDGE_PORT=tcp://10.0.0.1:80":         true,
		"RELAY_EDGE_PORT_80_TCP=tcp://10.0.0.1:80":  true,
		"RELAY_EDGE_PORT_80_TCP_PROTO=tcp":          true,
		"RELAY_EDGE_PORT_80_TCP_PORT=80":            true,
		"RELAY_EDGE_PORT_80_TCP_ADDR=10.0.0.1":      true,
		"RELAY_MY_RELEASE_EDGE_PORT_80_UDP_PORT=80": true,
		"RELAY_LISTENN=:8080":                       false,
		"RELAY_listen=:8080":                        false,
		"RELAY_EDGE_HOST=x":                         false,
		"RELAY_EDGE_PORTS=1":                        false,
		"RELAY_EDGE_PORT_HTTP=1":                    false,
		"RELAY_=1":                                  false,
	} {
		if err := checkEnvironment([]string{entry}, own); (err == nil) != known || (err != nil && !errors.Is(err, ErrUnknownVariable)) {
			t.Errorf("%s: %v, known %v", entry, err, known)
		}
	}
}

func TestEnvironmentErrorsShowNoValue(t *testing.T) {
	err := checkEnvironment([]string{"RELAY_SECRET=canary"}, nil)
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("%v", err)
	}
}

// The generated names are part of what every program knows.
func TestNamesAreKnown(t *testing.T) {
	for _, name := range strings.Fields(names) {
		if err := checkEnvironment([]string{name + "=x"}, nil); err != nil {
			t.Error(err)
		}
		if reserved(name) || !strings.HasPrefix(name, envPrefix+"_") {
			t.Errorf("names.txt: %s is no name for a variable of ours", name)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "abc", 0}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[AB]{0,6}`)
		a, b, c := word.Draw(t, "a"), word.Draw(t, "b"), word.Draw(t, "c")
		ab := distance(a, b)
		if ab != distance(b, a) || (ab == 0) != (a == b) || ab > distance(a, c)+distance(c, b) {
			t.Fatalf("distance is no metric for %q, %q, %q", a, b, c)
		}
	})
}
