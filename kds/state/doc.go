// Package state is the replicated state machine of the key derivation
// service: a pure function from committed entries to state. It has no clock,
// no randomness, no I/O and no map order in anything it writes, so all nodes
// that applied the same entries hold the same snapshot bytes.
//
// An entry is canonical CBOR with a kind. An entry that is well formed but
// not acceptable now (another epoch, older collateral, a slot of another
// platform) is rejected: every node returns the same *Rejected and the state
// stays. An entry that does not decode, or is of a kind this build does not
// know, halts the machine: it applies and serves nothing more, because the
// nodes that do know the entry have moved on, but it keeps its state and the
// process keeps its secrets (see kds/DESIGN.md).
//
// The machine holds no secret: the log of releases is a list of commitments.
package state
