// Package file is the append-only archive of a raftstore.Store: plain pwrite
// and fsync into numbered files of a fresh directory per server id. It is the
// default inside a TEE: nothing is mapped, nothing is read while the store
// runs, and an existing directory is refused, since an identity lives one boot.
//
// A file is a sequence of (4-byte big-endian length, sealed record). The
// records authenticate themselves and their order (raftstore.Opener); the
// framing here is untrusted, as everything on disk.
package file
