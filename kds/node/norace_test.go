//go:build !race

package node

// slow is how many times longer everything takes under the race detector.
const slow = 1
