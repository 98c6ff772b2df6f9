//go:build race

package engine

// poolLoss is how many of a hundred buffers a sync.Pool may lose: under the
// race detector it drops a quarter on purpose.
const poolLoss = 60
