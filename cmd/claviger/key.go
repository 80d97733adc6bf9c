package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/kds/derive"
	"github.com/claviger/claviger/policy"
)

func keyCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("key", "Ask a cluster for keys", keyDeriveCommand(s), keyPublicCommand(s))
}

// keyFlags name a key.
type keyFlags struct {
	constraint, name, purpose string
	version                   api.Version
}

func (f *keyFlags) register(cmd *cobra.Command, constraint string) {
	flags := cmd.Flags()
	flags.StringVar(&f.constraint, "constraint", "", constraint)
	flags.StringVar(&f.name, "name", "", "`name` of the key: 1 to 256 visible ASCII characters")
	flags.StringVar(&f.purpose, "purpose", "", "purpose: raw/1 to raw/64, aes-256, x25519, ed25519 or age")
	flags.Uint64Var(&f.version.Generation, "generation", 0, "root generation; 0 is the current one")
	flags.TextVar(&f.version.GenerationID, "generation-id", api.ID{}, "`id` of the root generation, as printed with a key: refused if the cluster holds another root, whatever its number")
	flags.Lookup("generation-id").DefValue = "" // 64 zeros would tell nobody anything
	flags.Uint64Var(&f.version.Counter, "counter", 0, "counter of the version; 0 is the current one")
}

// check finds mistakes before anything is sent.
func (f *keyFlags) check() error {
	if f.name == "" || f.purpose == "" {
		return cli.Usagef("--name and --purpose are needed, as in --name db --purpose aes-256")
	}
	if _, err := derive.ParsePurpose(f.purpose); err != nil {
		return &cli.UsageError{Err: err}
	}
	if _, err := policy.ParseConstraint(f.constraint); err != nil {
		return &cli.UsageError{Err: err}
	}
	return nil
}

// checkPublic is check for a public half, which has no image to take the constraint from.
func (f *keyFlags) checkPublic(asAge bool) error {
	if asAge && f.purpose == "" {
		f.purpose = derive.Age.String()
	}
	if asAge && f.purpose != derive.Age.String() {
		return cli.Usagef("--age needs purpose age, not %s", f.purpose)
	}
	if f.constraint == "" {
		return cli.Usagef("--constraint is missing: say which code shall hold the private half")
	}
	return f.check()
}

func (f *keyFlags) request() api.KeyRequest {
	return api.KeyRequest{Constraint: f.constraint, Name: f.name, Purpose: f.purpose, Version: f.version}
}

func (f *keyFlags) publicRequest() api.PublicKeyRequest {
	return api.PublicKeyRequest{Constraint: f.constraint, Name: f.name, Purpose: f.purpose, Version: f.version}
}

// derivedKey is the result of key derive. Key is there because the enclave is simulated: its host sees everything anyway.
type derivedKey struct {
	Key        string      `json:"key"` // hex, or an AGE-SECRET-KEY
	Purpose    string      `json:"purpose"`
	Name       string      `json:"name"`
	Constraint string      `json:"constraint"`
	Realm      string      `json:"realm"`
	Version    api.Version `json:"version"`
	ClusterID  api.ID      `json:"cluster_id"`
	Epoch      uint64      `json:"epoch"`
	LogIndex   uint64      `json:"log_index"`
}

func keyDeriveCommand(s *cli.Streams) *cobra.Command {
	var cluster clusterFlags
	var image imageFlags
	var key keyFlags
	var receipt string
	cmd := &cobra.Command{
		Use: "derive", Short: "Play a simulated enclave and get its key",
		Long: `Launches a simulated enclave on a simulated machine, attests it to the cluster over TLS and prints the key it gets.
Without --constraint the key is bound to exactly the image, so that the same image gets the same key on every machine
and nothing else gets it. Real enclaves do the same through the Go package kds/client; a key never leaves them.`,
		Example: `  claviger key derive --sim tour/world.json --machine laptop --image orders --name db --purpose aes-256
  claviger key derive --sim tour/world.json --machine laptop --image other --name db --purpose aes-256 \
    --constraint "$(claviger key derive … --json | jq -r .constraint)"    # refused: another measurement`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := cluster.open()
			if err != nil {
				return err
			}
			tee, err := image.launch(t)
			if err != nil {
				return err
			}
			if key.constraint == "" {
				key.constraint = tee.Image().Constraint()
			}
			if err := key.check(); err != nil {
				return err
			}
			return cluster.call(cmd.Context(), t, tee, func(ctx context.Context, c *client.Client) error {
				k, reply, err := c.Key(ctx, key.request())
				if err != nil {
					return err
				}
				defer k.Destroy()
				if err := writeReceipt(receipt, &reply.Receipt); err != nil {
					return err
				}
				return printDerived(s, k, reply)
			})
		},
	}
	cluster.register(cmd.Flags())
	image.register(cmd.Flags())
	key.register(cmd, "`text` of the constraint the key is bound to; default exactly the image")
	cmd.Flags().StringVar(&receipt, "receipt", "", "write the receipt of the release to this `file`; a recovery of the cluster never begins below it")
	return cmd
}

// writeReceipt keeps a receipt that has been verified.
func writeReceipt(name string, r *api.Receipt) error {
	if name == "" {
		return nil
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(name, append(raw, '\n'))
}

func printDerived(s *cli.Streams, k secret.Key, reply api.KeyReply) error {
	text, err := keyText(k, reply.Purpose)
	if err != nil {
		return err
	}
	out := derivedKey{
		Key: text, Purpose: reply.Purpose, Name: reply.Name, Constraint: reply.Constraint, Realm: reply.Realm,
		Version: reply.Version, ClusterID: reply.ClusterID, Epoch: reply.Epoch, LogIndex: reply.Receipt.Index,
	}
	return s.Print(out, func(w io.Writer) {
		table := rows{w}
		table.add("key", "%s", out.Key)
		table.add("purpose, name", "%s, %s", out.Purpose, out.Name)
		table.add("bound to", "%s", out.Constraint)
		table.add("realm", "%s", out.Realm)
		table.version(out.Version)
		table.add("recorded", "leaf %d of cluster %s, epoch %d; receipt verified", out.LogIndex, out.ClusterID, out.Epoch)
	})
}

// keyText is a key in the form its user needs: age has a text form of its own, everything else is hex.
func keyText(k secret.Key, purpose string) (string, error) {
	if purpose == derive.Age.String() {
		identity, err := derive.AgeIdentity(k)
		if err != nil {
			return "", err
		}
		return identity.String(), nil
	}
	raw := k.Reveal()
	defer clear(raw)
	return hex.EncodeToString(raw), nil
}

func keyPublicCommand(s *cli.Streams) *cobra.Command {
	var cluster clusterFlags
	var key keyFlags
	var asAge bool
	cmd := &cobra.Command{
		Use: "public", Short: "Get the public half of an asymmetric key, before anyone holds the private one",
		Long: `Prints the public half of the key that an enclave satisfying the constraint would get. No evidence is needed and no
such enclave need exist yet: encrypt to whatever code the constraint allows. The reply is signed by the cluster's
identity key and verified here. With --age it is an ordinary age recipient.`,
		Example: `  claviger key public --sim tour/world.json --constraint "C:$MRENCLAVE" --name mail --purpose x25519
  age -r "$(claviger key public --sim tour/world.json --constraint "C:$MRENCLAVE" --name inbox --age)" <plain >sealed.age`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := key.checkPublic(asAge); err != nil {
				return err
			}
			t, err := cluster.open()
			if err != nil {
				return err
			}
			return cluster.call(cmd.Context(), t, nil, func(ctx context.Context, c *client.Client) error {
				reply, err := c.PublicKey(ctx, key.publicRequest())
				if err != nil {
					return err
				}
				return printPublic(s, reply, asAge)
			})
		},
	}
	cluster.register(cmd.Flags())
	key.register(cmd, "`text` of the constraint that the private half is bound to")
	cmd.Flags().BoolVar(&asAge, "age", false, "print an age recipient and nothing else; implies --purpose age")
	return cmd
}

// version shows which root a key is of: the number may have been used twice, the id never.
func (r rows) version(v api.Version) {
	r.add("version", "%d.%d, of the root with id %s", v.Generation, v.Counter, v.GenerationID)
}

func printPublic(s *cli.Streams, reply api.PublicKeyReply, asAge bool) error {
	return s.Print(reply, func(w io.Writer) {
		if asAge {
			fmt.Fprintln(w, reply.Recipient)
			return
		}
		table := rows{w}
		table.add("public key", "%s", hex.EncodeToString(reply.PublicKey))
		if reply.Recipient != "" {
			table.add("recipient", "%s", reply.Recipient)
		}
		table.add("purpose, name", "%s, %s", reply.Purpose, reply.Name)
		table.add("bound to", "%s", reply.Constraint)
		table.add("can change", "%t", reply.Mutable)
		table.version(reply.Version)
		table.add("signed by", "identity key of cluster %s, epoch %d; verified", reply.ClusterID, reply.Epoch)
	})
}
