package kdsd

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/claviger/claviger/kds"
)

// MaxShareFile bounds a file with one share of a recovery key, in bytes.
const MaxShareFile = 4 << 10

// errShareFile does not repeat what is in the file.
var errShareFile = errors.New("not a share of a recovery key: want hexadecimal digits, as the genesis wrote them")

// ParseShareFile reads one share as WriteShares writes it.
func ParseShareFile(text []byte) (kds.Share, error) {
	if len(text) > MaxShareFile {
		return kds.Share{}, errShareFile
	}
	text = bytes.TrimSpace(text)
	raw := make([]byte, hex.DecodedLen(len(text)))
	defer clear(raw)
	if _, err := hex.Decode(raw, text); err != nil {
		return kds.Share{}, errShareFile
	}
	return kds.ParseShare(raw)
}

// WriteShares returns a genesis' Shares that writes each share in the clear to a file of its own below dir. It is for
// simulated clusters: whoever reads enough of the files has the roots of the cluster.
func WriteShares(dir string, log *slog.Logger) func([]kds.Share) error {
	return func(shares []kds.Share) error {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for _, s := range shares {
			if err := writeShare(filepath.Join(dir, fmt.Sprintf("share-%d.hex", s.Index)), s); err != nil {
				return err
			}
		}
		log.Info("the shares of the recovery key are written, in the clear as on a simulator; each belongs into other hands", "directory", dir, "shares", len(shares))
		return nil
	}
}

func writeShare(name string, s kds.Share) error {
	raw, err := s.Reveal()
	if err != nil {
		return err
	}
	defer clear(raw)
	text := append(hex.AppendEncode(nil, raw), '\n')
	defer clear(text)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}
