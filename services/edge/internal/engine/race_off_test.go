//go:build !race

package engine

// poolLoss is how many of a hundred buffers a sync.Pool may lose.
const poolLoss = 0
