package feedserver

import "google.golang.org/grpc/codes"

// Reason is why a stream ended. Its String is the metric label and the log
// field; the edge sees its code and text.
type Reason uint8

// The reasons.
const (
	ReasonGone         Reason = iota // the edge left, or its connection broke
	ReasonCut                        // the edge read too slowly: its queue was full
	ReasonReplaced                   // the edge opened another stream of the market
	ReasonBadInput                   // the edge said what it must not
	ReasonHelloTimeout               // the edge said nothing
	ReasonDraining                   // the process is about to stop
	reasonEnd
)

var reasons = [reasonEnd]struct {
	label string
	code  codes.Code
	text  string
}{
	ReasonGone:         {"gone", codes.OK, ""},
	ReasonCut:          {"cut", codes.ResourceExhausted, "the queue of the edge is full"},
	ReasonReplaced:     {"replaced", codes.Aborted, "the edge opened another stream of the market"},
	ReasonBadInput:     {"bad_input", codes.InvalidArgument, ""},
	ReasonHelloTimeout: {"hello_timeout", codes.DeadlineExceeded, "no hello"},
	ReasonDraining:     {"draining", codes.Unavailable, "draining"},
}

// String is the metric label.
func (r Reason) String() string { return reasons[r].label }
