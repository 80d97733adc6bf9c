package ratls

import (
	"crypto/sha512"
	"crypto/tls"
	"fmt"
)

const (
	// bindingLabel versions the report data.
	bindingLabel = "claviger/ratls/v1"
	// exporterLabel is registered by use alone, as RFC 5705 section 4 allows for "EXPORTER-" labels.
	exporterLabel = "EXPORTER-claviger-ratls-1"
	exporterSize  = 32
)

// binding is everything that a quote vouches for; see the package comment for the attack that each field stops.
type binding struct {
	_         struct{} `cbor:",toarray"`
	Label     string
	Protocol  string
	Role      Role
	ClusterID [32]byte
	Epoch     uint64
	Exporter  [exporterSize]byte
	ClientKey [32]byte
	ServerKey [32]byte
}

// reportData is SHA-512 of the binding's deterministic CBOR.
func (b binding) reportData() [64]byte {
	b.Label = bindingLabel
	return sha512.Sum512(encode(b))
}

// exporterOf takes the channel's own 32 bytes (RFC 8446 section 7.5).
func exporterOf(cs tls.ConnectionState) ([exporterSize]byte, error) {
	out, err := cs.ExportKeyingMaterial(exporterLabel, nil, exporterSize)
	if err != nil || len(out) != exporterSize {
		return [exporterSize]byte{}, fmt.Errorf("%w: no exporter: %w", ErrTLS, err)
	}
	return [exporterSize]byte(out), nil
}

// checkBound compares the report data in verified claims with what this channel demands.
func checkBound(got, want [64]byte) error {
	if got != want {
		return fmt.Errorf("%w: its report data is for another connection, key, role, protocol, cluster or epoch", ErrUnbound)
	}
	return nil
}
