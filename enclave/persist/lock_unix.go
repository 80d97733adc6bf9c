//go:build unix

package persist

import (
	"errors"
	"os"
	"syscall"
)

// flock takes an exclusive lock that ends when f is closed. The host grants it:
// it stops honest mistakes, not attacks.
func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return ErrLocked
		default:
			return err
		}
	}
}
