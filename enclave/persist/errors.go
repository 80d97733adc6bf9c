package persist

import "errors"

// Errors of this package; match them with errors.Is.
var (
	// ErrExists: Create found a store, or its register knows one. Open it.
	ErrExists = errors.New("persist: the store exists already")
	// ErrNotFound: Open found no store. Create makes one; Open never does.
	ErrNotFound = errors.New("persist: no such store")
	// ErrCorrupt: the files are not what this package wrote under this name and
	// key. Restore them; nothing of them was used.
	ErrCorrupt = errors.New("persist: the store is damaged or was tampered with")
	// ErrRolledBack: the files are genuine but not the newest state, or a fork of
	// it, by the word of the Register.
	ErrRolledBack = errors.New("persist: the store is not the newest state that the register knows")
	// ErrWrongKey: the store was made under another key.
	ErrWrongKey = errors.New("persist: the store was sealed under another key")
	// ErrLocked: another Map on this machine has the store open.
	ErrLocked = errors.New("persist: the store is open elsewhere on this machine")
	// ErrConflict: another writer advanced the register; this transaction did not
	// happen and the Map must be opened again.
	ErrConflict = errors.New("persist: another writer changed the store")
	// ErrTooLarge: a key, value, transaction or the store exceeds its limit.
	ErrTooLarge = errors.New("persist: size limit exceeded")
	// ErrFailed: a write, sync or register call failed midway. Whether the last
	// transaction happened is decided when the store is opened again.
	ErrFailed = errors.New("persist: the store stopped after a failed write and must be opened again")
	// ErrClosed: the Map was closed.
	ErrClosed = errors.New("persist: the store is closed")
	// ErrReadOnly: a change inside View.
	ErrReadOnly = errors.New("persist: the transaction is read-only")
	// ErrTxDone: use of a transaction after it ended.
	ErrTxDone = errors.New("persist: the transaction has ended")
	// ErrOptions: the Options are incomplete; the message names the field.
	ErrOptions = errors.New("persist: bad options")
)
