// Package conformance holds the edge to RFC 6455 and to what docs/PROTOCOL.md
// decides beyond it: tables of what a client does, octet for octet, and what it
// must see. Each row runs over a TCP socket of its own through the real front and
// the real engine, once for each kind of engine. It has no code beside its tests.
package conformance
