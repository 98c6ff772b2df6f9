package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	authv1 "github.com/cutemarkets/relay/proto/auth/v1"
	"github.com/cutemarkets/relay/services/internal/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var keyLine = regexp.MustCompile(`^cm_[0-9A-Za-z]{43}$`)

// newHome makes a pepper and names it and a database by the environment.
func newHome(t *testing.T) (database string) {
	t.Helper()
	dir := t.TempDir()
	pepper := filepath.Join(dir, "pepper")
	if err := os.WriteFile(pepper, []byte("a pepper of a test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	database = filepath.Join(dir, "auth.db")
	t.Setenv("RELAY_DATABASE", database)
	t.Setenv("RELAY_PEPPER_FILE", pepper)
	return database
}

func try(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = run(t.Context(), args, &out, &errs)
	return out.String(), errs.String(), err
}

func must(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := try(t, args...)
	if err != nil {
		t.Fatalf("auth %s: %v", strings.Join(args, " "), err)
	}
	return stdout, stderr
}

// lines decodes JSON lines.
func lines(t *testing.T, text string) (objects []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		objects = append(objects, object)
	}
	return objects
}

func TestMigrate(t *testing.T) {
	newHome(t)
	if stdout, _ := must(t, "migrate"); stdout != "applied 00001_users_and_keys.sql\n" {
		t.Errorf("first: %q", stdout)
	}
	if stdout, stderr := must(t, "migrate"); stdout != "" || !strings.Contains(stderr, "up to date") {
		t.Errorf("second: %q, %q", stdout, stderr)
	}
}

func TestUsers(t *testing.T) {
	newHome(t)
	must(t, "migrate")
	for _, step := range []struct {
		args            []string
		stocks, options string
		stderr          string
	}{
		{nil, "free", "free", "created user bob\n"},
		{[]string{"--plan-stocks", "expert"}, "expert", "free", "changed user bob\n"},
		{[]string{"--plan-options", "commercial"}, "expert", "commercial", "changed user bob\n"},
		{[]string{"--plan-stocks=developer", "--plan-options=free"}, "developer", "free", "changed user bob\n"},
	} {
		stdout, stderr := must(t, append([]string{"users", "set", "--user", "bob", "--format", "json"}, step.args...)...)
		user := lines(t, stdout)[0]
		if user["user"] != "bob" || user["plan_stocks"] != step.stocks || user["plan_options"] != step.options || stderr != step.stderr {
			t.Errorf("%q: %v, %q", step.args, user, stderr)
		}
	}
	must(t, "users", "set", "--user", "al")
	stdout, stderr := must(t, "users", "list", "--format=json")
	if users := lines(t, stdout); len(users) != 2 || users[0]["user"] != "al" || users[1]["user"] != "bob" || stderr != "" {
		t.Errorf("list: %v, %q", users, stderr)
	}
	stdout, _ = must(t, "users", "list")
	if rows := strings.Split(stdout, "\n"); len(rows) != 4 || !strings.HasPrefix(rows[0], "USER  STOCKS") || !strings.HasPrefix(rows[2], "bob   developer  free") {
		t.Errorf("list:\n%s", stdout)
	}
}

func TestKeys(t *testing.T) {
	newHome(t)
	must(t, "migrate")
	must(t, "users", "set", "--user", "bob")
	must(t, "users", "set", "--user", "al")

	stdout, stderr := must(t, "keys", "create", "--user", "bob", "--product", "stocks", "--count", "3", "--label", "my label")
	keys := strings.Fields(stdout)
	if len(keys) != 3 || strings.Count(stdout, "\n") != 3 {
		t.Fatalf("%d keys in %d lines", len(keys), strings.Count(stdout, "\n"))
	}
	for _, key := range keys {
		if !keyLine.MatchString(key) || strings.Contains(stderr, key) {
			t.Error("a line is no key, or stderr has it too")
		}
	}
	if !strings.Contains(stderr, "cannot be shown again") {
		t.Errorf("stderr: %q", stderr)
	}
	stdout, _ = must(t, "keys", "create", "--user", "al", "--product", "paper", "--format", "json")
	created := lines(t, stdout)[0]
	if len(created) != 2 || !keyLine.MatchString(created["key"].(string)) {
		t.Error("JSON is not key and key_id")
	}

	list, stderr := must(t, "keys", "list", "--format", "json")
	all := lines(t, list)
	if len(all) != 4 || stderr != "" || all[0]["label"] != "my label" || all[0]["user"] != "bob" || all[0]["product"] != "stocks" {
		t.Errorf("list: %v, %q", all, stderr)
	}
	if last := all[3]; last["key_id"] != created["key_id"] || last["product"] != "paper" || last["revoked"] != nil {
		t.Errorf("list: %v", last)
	}
	for _, key := range append(keys, created["key"].(string)) {
		if strings.Contains(list, key) {
			t.Error("the list shows a key")
		}
	}
	if of, _ := must(t, "keys", "list", "--user", "al", "--format", "json"); len(lines(t, of)) != 1 {
		t.Errorf("list of al: %s", of)
	}

	id := created["key_id"].(string)
	first, _ := must(t, "keys", "revoke", id, "--format", "json")
	second, _ := must(t, "keys", "revoke", id, "--format", "json")
	if revoked := lines(t, first)[0]; revoked["revoked"] == nil || first != second {
		t.Errorf("revoke: %s, then %s", first, second)
	}
	if text, _ := must(t, "keys", "list", "--user", "al"); strings.Contains(text, " -\n") {
		t.Errorf("not shown as revoked:\n%s", text)
	}
}

func TestManyKeysShowProgress(t *testing.T) {
	newHome(t)
	must(t, "migrate")
	must(t, "users", "set", "--user", "bob")
	stdout, stderr := must(t, "keys", "create", "--user", "bob", "--product", "options", "--count", "10000")
	if n := strings.Count(stdout, "\ncm_") + 1; n != 10000 {
		t.Errorf("%d keys", n)
	}
	if n := strings.Count(stderr, "of 10000 keys\n"); n != 10 {
		t.Errorf("progress was shown %d times", n)
	}
}

func TestNumberedUsers(t *testing.T) {
	newHome(t)
	must(t, "migrate")
	must(t, "users", "set", "--user", "load-2")
	stdout, stderr := must(t, "users", "set", "--user", "load", "--numbered", "3", "--plan-stocks", "expert")
	if stdout != "" || stderr != "set 3 users (2 new): load-1 to load-3\n" {
		t.Errorf("%q, %q", stdout, stderr)
	}
	stdout, _ = must(t, "keys", "create", "--user", "load", "--numbered", "3", "--count", "2", "--product", "stocks")
	if n := strings.Count(stdout, "cm_"); n != 6 {
		t.Errorf("%d keys", n)
	}
	for _, user := range []string{"load-1", "load-2", "load-3"} {
		stdout, _ := must(t, "keys", "list", "--user", user, "--format=json")
		if keys := lines(t, stdout); len(keys) != 2 {
			t.Errorf("%s has %d keys", user, len(keys))
		}
	}
}

// full is a disk without space.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestKeysThatCannotBePrinted(t *testing.T) {
	newHome(t)
	must(t, "migrate")
	must(t, "users", "set", "--user", "bob")
	var stderr bytes.Buffer
	err := run(t.Context(), []string{"keys", "create", "--user", "bob", "--product", "stocks"}, full{}, &stderr)
	if err == nil || !strings.Contains(err.Error(), "auth keys list --user bob") || !strings.Contains(err.Error(), "no space left") {
		t.Error(err)
	}
	for _, args := range [][]string{{"keys", "list"}, {"users", "list"}, {"users", "list", "--format=json"}} {
		if err := run(t.Context(), args, full{}, &stderr); err == nil {
			t.Errorf("%q: lost silently", args)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	database := newHome(t)
	canary := "cm_canary0000000000000000000000000000000000000"
	missing := filepath.Join(t.TempDir(), "other.db")
	must(t, "migrate")
	must(t, "users", "set", "--user", "bob")
	must(t, "keys", "create", "--user", "bob", "--product", "stocks")
	otherPepper := filepath.Join(t.TempDir(), "pepper")
	if err := os.WriteFile(otherPepper, []byte("another pepper of a test"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty.db")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(more ...string) []string {
		return append([]string{"keys", "create", "--product", "stocks"}, more...)
	}
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"no command":         {nil, "expected one of"},
		"unknown command":    {[]string{"key"}, "unexpected argument"},
		"unknown user":       {create("--user", "eve"), "auth users set --user eve"},
		"list unknown user":  {[]string{"keys", "list", "--user", "eve"}, "auth users set --user eve"},
		"no database":        {[]string{"users", "list", "--database", missing}, "auth migrate --database " + missing},
		"old database":       {[]string{"users", "list", "--database", empty}, "auth migrate --database " + empty},
		"no folder":          {[]string{"migrate", "--database", filepath.Join(missing, "x.db")}, "does not exist"},
		"no user":            {create(), "--user"},
		"bad user":           {create("--user", "a b"), "use letters"},
		"bad new user":       {[]string{"users", "set", "--user", "a b"}, "use letters"},
		"bad plan":           {[]string{"users", "set", "--user", "bob", "--plan-stocks", "gold"}, `"free" "developer" "expert" "commercial"`},
		"bad product":        {[]string{"keys", "create", "--user", "bob", "--product", "gold"}, `"stocks" "options" "paper"`},
		"no keys":            {create("--user", "bob", "--count", "0"), "--count"},
		"too many keys":      {create("--user", "bob", "--count", "1000001"), "--count"},
		"bad label":          {create("--user", "bob", "--label", "a\nb"), "label"},
		"missing pepper":     {create("--user", "bob", "--pepper-file", missing), "--pepper-file"},
		"another pepper":     {create("--user", "bob", "--pepper-file", otherPepper), "another pepper"},
		"serve other pepper": {[]string{"serve", "--listen=127.0.0.1:0", "--operations-listen=127.0.0.1:0", "--pepper-file", otherPepper}, "another pepper"},
		"revoke by the key":  {[]string{"keys", "revoke", canary}, "auth keys list"},
		"bad format":         {[]string{"users", "list", "--format", "xml"}, "text"},
	} {
		stdout, _, err := try(t, c.args...)
		if err == nil || !strings.Contains(err.Error(), c.says) || stdout != "" {
			t.Errorf("%s: %v, stdout %q", name, err, stdout)
		}
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if _, err := os.Stat(missing); !os.IsNotExist(err) {
		t.Errorf("a database was made by accident: %v", err)
	}
	t.Setenv("RELAY_PEPPER_FILE", "")
	for _, args := range [][]string{create("--user", "bob"), {"serve"}} {
		if _, _, err := try(t, args...); err == nil || !strings.Contains(err.Error(), "openssl rand") {
			t.Errorf("%q without a pepper: %v", args, err)
		}
	}
	t.Setenv("RELAY_DATABASES", database)
	var usage *config.UsageError
	if _, _, err := try(t, "users", "list"); !errors.As(err, &usage) || !strings.Contains(err.Error(), "RELAY_DATABASE?") {
		t.Errorf("misspelt variable: %v", err)
	}
}

func TestServe(t *testing.T) {
	newHome(t)
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		args := []string{"serve", "--listen", address, "--operations-listen", freeAddress(t), "--log-level", "error"}
		ended <- run(ctx, args, &bytes.Buffer{}, &bytes.Buffer{})
	}()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	waiting, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	watch, err := healthv1.NewHealthClient(conn).Watch(waiting, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for answer := (*healthv1.HealthCheckResponse)(nil); answer.GetStatus() != healthv1.HealthCheckResponse_SERVING; {
		if answer, err = watch.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "users", "set", "--user", "bob", "--plan-options", "expert")
	key, _ := must(t, "keys", "create", "--user", "bob", "--product", "options")
	answer, err := authv1.NewAuthServiceClient(conn).Authenticate(waiting, &authv1.AuthenticateRequest{
		Key: strings.TrimSpace(key), Product: authv1.Product_PRODUCT_OPTIONS,
	})
	if err != nil || answer.GetPrincipal().GetUserId() != "bob" {
		t.Errorf("%v, %v", answer, err)
	}
	stop()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
