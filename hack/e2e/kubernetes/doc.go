// Package kubernetes tests the chart on a real cluster: `make cluster-test`. Its
// tests have the build tag kubernetes and need kubectl, helm, a cluster and
// images in a registry that the cluster can read.
package kubernetes
