package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
)

// maxOperatorKey bounds an operator's key file, in bytes.
const maxOperatorKey = 4 << 10

func clusterOperatorKeyCommand(s *cli.Streams) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "operator-key", Short: "Make the key of an operator",
		Long: `Makes an Ed25519 key and writes its seed to a new file that only you can read. The public half goes into the genesis section of the
first node's configuration, under operators.keys.

Whoever has the file signs as you. Make it on a machine that is not the cluster's host, keep it offline, and keep a copy: the
operators of a cluster are fixed when it is founded.`,
		Example: "  claviger cluster operator-key --out alice.key",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if out == "" {
				return cli.Usagef("--out is missing; name the file to write the key to")
			}
			public, err := writeOperator(out)
			if errors.Is(err, fs.ErrExist) {
				return cli.Usagef("%s exists and is not overwritten: it may be a key that is in use", out)
			}
			if err != nil {
				return err
			}
			result := struct {
				File      string `json:"file"`
				PublicKey string `json:"public_key"`
			}{out, public}
			return s.Print(result, func(w io.Writer) {
				rows{w}.add("secret key", "%s: keep it offline, and a copy", out)
				rows{w}.add("public key", "%s", public)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "new `file` for the secret key")
	return cmd
}

// writeOperator makes an operator's key, writes its seed to a new file and returns its public half in hex.
func writeOperator(name string) (string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(public), writeNew(name, []byte(hex.EncodeToString(private.Seed())+"\n"))
}

// readOperator reads what writeOperator wrote. Errors do not repeat it.
func readOperator(s *cli.Streams, name string) (ed25519.PrivateKey, error) {
	raw, err := s.ReadFile(name, maxOperatorKey)
	if err != nil {
		return nil, err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, cli.Usagef("%s is not an operator's key: want 64 hex digits, as 'claviger cluster operator-key' writes", name)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

var errApproval = errors.New("not an approval of this statement")

// approvalError says which file, and what about it.
func approvalError(file, format string, args ...any) error {
	return fmt.Errorf("%s: %w: "+format, append([]any{file, errApproval}, args...)...)
}
