// Package history reads the archives of dead servers, inside the enclave that
// recovers from them. Inspect opens one archive, Compare says how several are
// related and which is the newest, Replay brings a machine to where one ends.
//
// What it proves: every record is one that the named server wrote, at its place
// in that server's chain, with nothing missing between the first and the last.
// What it cannot prove: that the archive ends where the server stopped. A host
// that cuts an archive between two records shows an honest, older one; that is
// why several are compared, why receipts and final checkpoints are asked for,
// and why people decide (kds/node/DESIGN.md).
//
// Memory is bounded: two snapshots of raftstore.MaxSnapshot at the most, and
// MaxLog bytes of log, for one archive.
package history
