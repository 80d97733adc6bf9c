//go:build !unix

package persist

import (
	"errors"
	"os"
)

// flock refuses: without a lock two Maps could damage one store by mistake.
func flock(*os.File) error { return errors.ErrUnsupported }
