// Package charttest renders charts/relay with the Helm binaries of bin/, decodes
// every document strictly into the types of the Kubernetes API, and checks what
// must hold for each set of values in charts/relay/ci. A binary that is missing
// fails the tests: `make chart-test` builds it.
package charttest
