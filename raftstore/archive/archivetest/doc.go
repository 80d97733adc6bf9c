// Package archivetest is what every archive of a raftstore.Store has to pass:
//
//   - [Conform]: order, bounds, durability before acknowledgement, Cut and Drop,
//     what a crash may leave at every byte of the last record, and that each way
//     a disk fails is final and reported;
//   - [Stores]: a cluster of three real stores on the archive, one of whose disks
//     fails: that store stops with a raftstore.ArchiveError and the cluster goes on;
//   - [Adversary]: a disk that flips, cuts, swaps, replays, mixes and grows what
//     was written; its table says what a recovery then opens;
//   - [Blind]: a running store does not notice what happens to its files.
//
// Faults of the disk are made by the kernel: calls are done on a thread of their
// own under a seccomp filter that answers with the error (thread.go). Nothing
// is mocked below the archive.
package archivetest
