// Package truth is the file in which feedsim tells what it really sent: every
// event in the order generated, and when a market's feed broke and came back.
// Writer makes it and Reader reads it, one line at a time. The checker holds
// what clients received against it.
//
// A file is text, one line each, fields separated by tabs, for all markets:
//
//	E <market> <sequence> <unix ns> <topic> <bytes of the event>
//	D <market> <unix ns>
//	U <market> <unix ns>
//
// The package starts no goroutine. A Writer under overload waits for the file
// beneath it; a Reader holds one line.
package truth

import "time"

// Kind tells what a line is about.
type Kind byte

const (
	// Event is an event, whether it was sent to anybody or not.
	Event Kind = 'E'
	// Down says that the socket which carried a market's data was lost.
	Down Kind = 'D'
	// Up says that a client has subscribed anew and gets events again.
	Up Kind = 'U'
)

// Line is one line of a file. Sequence, Topic and Raw are those of an Event.
type Line struct {
	Kind     Kind
	Market   string
	Sequence uint64 // counts the events of the market from 1
	At       time.Time
	Topic    []byte // such as T.AAPL
	Raw      []byte // original bytes of the event
}
