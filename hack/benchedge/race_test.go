//go:build race && linux

package benchedge

const raceEnabled = true
