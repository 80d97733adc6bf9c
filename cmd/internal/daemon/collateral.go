package daemon

import (
	"context"
	"encoding/hex"
	"path/filepath"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
)

// CollateralDir returns a source that reads bundles from a directory: <tee>-<fmspc>.json. The directory belongs to the
// host, which can withhold collateral there, and no more: it is signed by Intel.
func CollateralDir(dir string) func(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	return func(_ context.Context, quote []byte) (*attest.Collateral, error) {
		q, err := attest.Parse(quote)
		if err != nil {
			return nil, err
		}
		platform, err := attest.PlatformOf(q)
		if err != nil {
			return nil, err
		}
		name := filepath.Join(dir, string(q.TEE())+"-"+hex.EncodeToString(platform.FMSPC[:])+".json")
		raw, err := (&cli.Streams{}).ReadFile(name, attest.MaxCollateral)
		if err != nil {
			return nil, err
		}
		return attest.ParseCollateral(raw)
	}
}
