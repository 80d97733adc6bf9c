//go:build !race

package archivetest

// RaceDetector says that this binary has the race detector, with which starting
// hundreds of processes takes minutes and finds nothing.
const RaceDetector = false
