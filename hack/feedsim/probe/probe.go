// Package probe asks a relay or a vendor server for events, as a stranger
// would: it knows the WebSocket protocol and the vendor's messages, and no
// package of the services.
//
// It owns one connection, starts no goroutine and keeps no event.
package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/cutemarkets/relay/hack/feedsim/session"
)

// What can go wrong. The error that Run returns says more.
var (
	ErrUnreachable = errors.New("no connection")
	ErrRefused     = errors.New("handshake refused")
	ErrClosed      = errors.New("closed by the server")
	ErrAborted     = errors.New("connection lost without a close frame")
	ErrTimeout     = errors.New("timeout")
	ErrProtocol    = errors.New("not the vendor's protocol")
)

// maxFrame is what the vendor's own clients read at most, and some.
const maxFrame = 1 << 20

// Options are the arguments of `feedsim probe`.
type Options struct {
	URL   string   `arg:"" name:"url" help:"WebSocket URL, such as ws://127.0.0.1:8080/v1/ws/stocks/."`
	Words []string `arg:"" name:"key> <topics" help:"API key, left out with --key-file; and topics with commas between them, such as T.AAPL,AM.*."`

	KeyFile string        `name:"key-file" type:"path" placeholder:"FILE" help:"File with the API key, so that it is no argument that others can see."`
	Count   int           `name:"count" default:"1" help:"Events to wait for; 0: only for the acknowledgement of every topic."`
	Timeout time.Duration `name:"timeout" default:"10s" help:"For everything together."`
	InBand  bool          `name:"in-band" help:"Send the key as an auth message, as the vendor's clients do, and not in the Authorization header."`
	Verbose bool          `name:"verbose" short:"v" help:"Print what is received."`

	// What Words and KeyFile say.
	Key    session.Key `kong:"-"`
	Topics string      `kong:"-"`
}

// AfterApply takes the key and the topics from the arguments and the key file.
// The error names the file, never its content.
func (o *Options) AfterApply() error {
	switch {
	case o.KeyFile == "" && len(o.Words) == 2:
		o.Key, o.Topics = session.Key(o.Words[0]), o.Words[1]
		return nil
	case o.KeyFile == "":
		return errors.New("want a URL, a key and topics; or a URL, topics and --key-file")
	case len(o.Words) != 1:
		return errors.New("with --key-file, want a URL and topics and no key")
	}
	text, err := os.ReadFile(o.KeyFile)
	if err != nil {
		return fmt.Errorf("read key file: %w", err)
	}
	o.Key, o.Topics = session.Key(strings.TrimSpace(string(text))), o.Words[0]
	if o.Key == "" {
		return fmt.Errorf("read key file %s: it holds no key", o.KeyFile)
	}
	return nil
}

// Validate reports what is wrong with the options.
func (o *Options) Validate() error {
	switch {
	case o.Count < 0:
		return fmt.Errorf("--count: want 0 or more, got %d", o.Count)
	case o.Timeout <= 0:
		return fmt.Errorf("--timeout: want more than 0, got %s", o.Timeout)
	}
	return nil
}

// run is the state of one probe.
type run struct {
	options Options
	conn    *websocket.Conn
	out     io.Writer

	topics        []string
	acked         map[string]bool
	connected     bool
	authenticated bool
	events        int
	complaint     string // the last status that was no good news
}

// Run probes once and writes what it saw to out. Its errors wrap one of the Err
// values above and never contain the key.
func Run(ctx context.Context, o Options, out io.Writer) error {
	r := &run{options: o, out: out, acked: make(map[string]bool)}
	for t := range strings.SplitSeq(o.Topics, ",") {
		r.topics = append(r.topics, strings.TrimSpace(t))
	}
	limited, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	began := time.Now()
	err := r.dial(limited)
	if err == nil {
		defer func() { _ = r.conn.CloseNow() }()
		err = r.receive(limited)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && limited.Err() != nil:
		return fmt.Errorf("%w after %s: %s", ErrTimeout, o.Timeout, r.progress())
	case err != nil:
		return r.redactError(err)
	}
	_ = r.conn.Close(websocket.StatusNormalClosure, "")
	r.print(fmt.Sprintf("ok: %s in %s", r.progress(), time.Since(began).Round(time.Millisecond)))
	return nil
}

func (r *run) dial(ctx context.Context) error {
	header := http.Header{}
	if !r.options.InBand {
		header.Set("Authorization", "Bearer "+string(r.options.Key))
	}
	conn, response, err := websocket.Dial(ctx, r.options.URL, &websocket.DialOptions{HTTPHeader: header}) //nolint:bodyclose // Dial says that it need not be
	if err != nil {
		if response != nil && response.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("%w: HTTP %s%s", ErrRefused, response.Status, body(response))
		}
		// A url.Error repeats the URL, which may contain a key.
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	conn.SetReadLimit(maxFrame)
	r.conn = conn
	return nil
}

func body(response *http.Response) string {
	text, err := io.ReadAll(response.Body)
	if err != nil || len(text) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(text))
}

// receive reads frames until everything has come that was asked for.
func (r *run) receive(ctx context.Context) error {
	for {
		_, frame, err := r.conn.Read(ctx)
		if err != nil {
			return r.lost(err)
		}
		var objects []json.RawMessage
		if json.Unmarshal(frame, &objects) != nil {
			return fmt.Errorf("%w: a frame that is no JSON array", ErrProtocol)
		}
		for _, o := range objects {
			if err := r.object(ctx, o); err != nil {
				return err
			}
			if r.done() {
				return nil
			}
		}
	}
}

func (r *run) done() bool {
	return r.events >= r.options.Count && (r.options.Count > 0 || len(r.acked) == len(r.topics))
}

func (r *run) object(ctx context.Context, o json.RawMessage) error {
	var status struct {
		Event   string `json:"ev"`
		Status  string `json:"status"`
		Message string `json:"message"`
	}
	if json.Unmarshal(o, &status) != nil || status.Event == "" {
		return fmt.Errorf("%w: an element that is no object with ev", ErrProtocol)
	}
	if r.options.Verbose {
		r.print(string(o))
	}
	if status.Event != "status" {
		r.events++
		return nil
	}
	switch status.Status {
	case "connected":
		r.connected = true
		if r.options.InBand {
			return r.send(ctx, "auth", string(r.options.Key))
		}
	case "auth_success":
		if !r.authenticated {
			r.authenticated = true
			return r.send(ctx, "subscribe", strings.Join(r.topics, ","))
		}
	case "success":
		if topic, ok := strings.CutPrefix(status.Message, "subscribed to: "); ok {
			r.acked[topic] = true
		}
	default:
		r.complaint = status.Status + ": " + status.Message
	}
	return nil
}

func (r *run) send(ctx context.Context, action, params string) error {
	message, err := json.Marshal(map[string]string{"action": action, "params": params})
	if err != nil {
		return err
	}
	if err := r.conn.Write(ctx, websocket.MessageText, message); err != nil {
		return r.lost(err)
	}
	return nil
}

// lost explains the end of the connection.
func (r *run) lost(err error) error {
	var closed websocket.CloseError
	if !errors.As(err, &closed) {
		return fmt.Errorf("%w: %s", ErrAborted, r.progress())
	}
	why := fmt.Sprintf("code %d", int(closed.Code))
	if closed.Reason != "" {
		why += fmt.Sprintf(" %q", closed.Reason)
	}
	return fmt.Errorf("%w: %s: %s", ErrClosed, why, r.progress())
}

// progress says how far the probe came.
func (r *run) progress() string {
	var text string
	switch {
	case r.conn == nil:
		text = "no answer to the handshake"
	case !r.connected:
		text = "no greeting"
	case !r.authenticated:
		text = "not authenticated"
		if !r.options.InBand && r.complaint == "" {
			text += " (a vendor server needs --in-band)"
		}
	default:
		text = fmt.Sprintf("%d of %d topics acknowledged, %d of %d events", len(r.acked), len(r.topics), r.events, r.options.Count)
	}
	if r.complaint != "" {
		text += "; server says " + r.complaint
	}
	return r.redact(text)
}

func (r *run) print(line string) { _, _ = fmt.Fprintln(r.out, r.redact(line)) }

func (r *run) redact(text string) string {
	if r.options.Key == "" {
		return text
	}
	return strings.ReplaceAll(text, string(r.options.Key), "[redacted]")
}

// redactedError hides the key in a text that came from elsewhere.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }

func (r *run) redactError(err error) error { return &redactedError{r.redact(err.Error()), err} }
