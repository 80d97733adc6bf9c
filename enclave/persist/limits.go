package persist

import "fmt"

// Hard limits, which are also the defaults of [Limits].
const (
	MaxKey   = 1<<10 + 64 // bytes in a key, at least one: 1 KiB and a prefix of the user's own
	MaxValue = 1 << 20    // bytes in a value; none is fine
	MaxTxn   = 16 << 20   // encoded bytes in one transaction
	MaxStore = 256 << 20  // accounted bytes in one store, all of it held in memory
	maxName  = 128        // characters in a store's name

	entryCost = 96 // accounted per entry beside its key and value
)

// Limits lowers the hard limits of one Map; zero fields mean the hard limit and
// larger ones are cut to it. They bind new changes, not what is already stored.
type Limits struct {
	Key, Value, Txn int   // bytes
	Store           int64 // bytes of all keys and values, plus 96 for each entry
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Key:   lower(l.Key, MaxKey),
		Value: lower(l.Value, MaxValue),
		Txn:   lower(l.Txn, MaxTxn),
		Store: lower(l.Store, MaxStore),
	}
}

func lower[T int | int64](asked, hard T) T {
	if asked <= 0 || asked > hard {
		return hard
	}
	return asked
}

// checkName admits names that are one plain file name on every system.
func checkName(name string) error {
	if len(name) == 0 || len(name) > maxName {
		return fmt.Errorf("%w: Name needs 1 to %d characters", ErrOptions, maxName)
	}
	for _, c := range []byte(name) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("%w: Name may hold a-z, 0-9, - and _ only", ErrOptions)
		}
	}
	return nil
}
