// Package persist keeps an encrypted, authenticated, ordered map in plain files
// that the enclave's host owns and may attack.
//
// A [Map] holds byte-string keys and values in order. [Map.View] reads one
// consistent state; [Map.Update] runs one serializable transaction whose changes
// reach the files together or not at all. The encryption key comes from the
// caller, usually from the key service, so a store opens on any machine whose
// enclave may have that key:
//
//	m, err := persist.Open(ctx, persist.Options{
//		Files: persist.Dir("/data"), Name: "orders", Key: key, Register: register,
//	})
//	err = m.Update(ctx, func(tx *persist.Tx) error {
//		return tx.Put([]byte("order/17"), body)
//	})
//
// # What it guarantees
//
// Contents, keys and the number of entries are hidden; file sizes, in units of
// 512 bytes, and the times of writes are not. A changed, mixed, reordered or
// renamed file is refused with [ErrCorrupt], a wrong key with [ErrWrongKey]. An
// acknowledged transaction survives a crash at any instant. The record cut short
// by a crash is dropped, because it was never acknowledged.
//
// # What it does not guarantee by itself
//
// Sealing proves integrity, never freshness: the host can put back an older but
// genuine copy of the files. Only a [Register], a small compare-and-swap cell
// outside the host's reach, reveals this ([ErrRolledBack]); a Map without one
// must say so by name, [Options.NoFreshnessUnsafe]. The host's file lock stops
// honest mistakes on one machine; against a lying host two live writers are told
// apart by the Register alone ([ErrConflict]).
//
// # How
//
// DESIGN.md in the parent directory states the file format and its reasons. In
// short: two slot files; the live one holds a sealed checkpoint followed by one
// sealed, hash-chained record per commit; compaction writes a new checkpoint to
// the other slot. The package uses pread, pwrite, fsync, rename and flock only,
// and keeps the whole map in memory: [Limits] bound it.
package persist
