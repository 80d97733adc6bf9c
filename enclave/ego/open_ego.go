//go:build ego

package ego

import "github.com/edgelesssys/ego/enclave"

// Open returns the TEE of this process. It fails with ErrSimulation outside an
// enclave and in EGo's simulation mode.
func Open() (*TEE, error) { return open(edgeless{}) }

// edgeless is EGo's runtime.
type edgeless struct{}

func (edgeless) RemoteReport(reportData []byte) ([]byte, error) {
	return enclave.GetRemoteReport(reportData)
}

// UniqueSealKey asks for the key without a random key id, which SealingKey would
// have nowhere to keep: one enclave on one processor then gets one key.
func (edgeless) UniqueSealKey() ([]byte, error) {
	key, _, err := enclave.GetUniqueSealKey()
	return key, err
}
