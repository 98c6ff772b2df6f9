// Package tape prints what a market would say: a seeded, endless sequence of
// vendor events (trades, quotes, aggregates and the rarer kinds) for a fixed
// list of tickers, as compact JSON.
//
// The package is pure. It reads no clock, starts no goroutine and does no I/O:
// the caller says which moment each tick stands for. The same Config yields the
// same sequence of events, byte for byte where the caller gives the same times.
// It owns its buffers; under load it does neither more nor less than its rate.
package tape
