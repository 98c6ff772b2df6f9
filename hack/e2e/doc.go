// Package e2e holds the end-to-end tests: the real binaries, two and more edges
// and a real redis-server, spoken to over real sockets. What they need beside Go
// is installed by `make deps`; a test that lacks it fails.
package e2e
