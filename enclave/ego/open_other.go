//go:build !ego

package ego

import (
	"fmt"

	"github.com/claviger/claviger/enclave"
)

// Open fails with enclave.ErrUnsupported: this program was built without the tag
// "ego".
func Open() (*TEE, error) {
	return nil, fmt.Errorf("ego: %w: this program was built without EGo; "+
		"build it with `ego-go build -tags ego`, sign it with `ego sign` and start it with `ego run`", enclave.ErrUnsupported)
}
