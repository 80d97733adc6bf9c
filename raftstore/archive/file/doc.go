// Package file is the append-only archive of a raftstore.Store: plain pwrite
// and fsync into numbered files of a fresh directory per server id. It is the
// default inside a TEE: nothing is mapped, nothing is read while the store
// runs, and an existing directory is refused, since an identity lives one boot.
//
// It is trimmed by whole files: a Cut begins a new one, and a Drop removes those
// before it, after writing the number of the first that stays into a file named
// "first". Directories of earlier boots are never touched: a recovery may need
// them, and which it cannot need only a running cluster knows; see "What may be
// deleted" in the DESIGN.md of the directory above.
//
// A file is a sequence of (4-byte big-endian length, sealed record). The
// records authenticate themselves and their order (raftstore.Opener); the
// framing here is untrusted, as everything on disk.
package file
