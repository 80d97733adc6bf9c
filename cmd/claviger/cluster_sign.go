package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// howToSign ends the help of every command that makes a statement of the operators.
const howToSign = `

Without --key nothing is signed: read first. With --key the statement is signed, together with the signatures in the files of --with.
Below the threshold of the operators the file of --out takes it to the next one, who gives the very same command with --with: the
file must hold the statement that the command line describes, so nobody signs what somebody else has written. At the threshold it is
submitted to a node. It counts once, in this epoch and at its place in the order of statements; if another one comes first, sign again.`

// errStatement says that a file does not hold the statement that the command line describes.
var errStatement = errors.New("not the statement that this command makes")

// statementFlags are what all commands that change a cluster have in common.
type statementFlags struct {
	cluster    clusterFlags
	keys, with []string
	out        string
}

func (f *statementFlags) register(flags *pflag.FlagSet) {
	f.cluster.register(flags)
	flags.StringArrayVar(&f.keys, "key", nil, "`file` with an operator's secret key; may be repeated")
	flags.StringArrayVar(&f.with, "with", nil, "`file` with the statement and the signatures of other operators; may be repeated")
	flags.StringVar(&f.out, "out", "", "`file` for statement and signatures, to hand to the next operator")
}

// change is one statement on its way.
type change struct {
	ClusterID string          `json:"cluster_id"`
	Name      string          `json:"name"`
	Epoch     uint64          `json:"epoch"`
	Sequence  uint64          `json:"sequence"`
	Kind      string          `json:"kind"`
	Body      api.AdminBody   `json:"body"`
	Says      []string        `json:"says"` // in words
	Threshold uint64          `json:"threshold"`
	Signed    []string        `json:"signed,omitempty"` // public keys, hex
	File      string          `json:"file,omitempty"`
	Accepted  *api.AdminReply `json:"accepted,omitempty"`
	Next      string          `json:"next,omitempty"` // what to do now

	request  api.AdminRequest
	manifest *api.Manifest
}

// run looks at the cluster, has make say what the statement does to it, and signs and submits it as far as the flags ask.
func (f *statementFlags) run(cmd *cobra.Command, s *cli.Streams, make func(api.Cluster, *api.Manifest) (api.AdminBody, []string, error)) error {
	if err := keeps(f.out, f.keys); err != nil {
		return err
	}
	return f.cluster.look(cmd.Context(), func(ctx context.Context, v *sight) error {
		body, says, err := make(v.now, v.manifest)
		if err != nil {
			return err
		}
		ch, err := f.prepare(v.now, v.manifest, body, says)
		if err != nil {
			return err
		}
		if err := f.sign(ctx, s, v.client, ch); err != nil {
			return err
		}
		ch.Next = f.next(cmd, ch)
		return s.Print(ch, ch.write)
	})
}

func (f *statementFlags) prepare(now api.Cluster, m *api.Manifest, body api.AdminBody, says []string) (*change, error) {
	if now.Ended {
		return nil, api.NewProblem(api.CodeEnded, "the operators have ended this epoch; what comes next is 'claviger cluster recover'")
	}
	ch := &change{ClusterID: now.ClusterID.String(), Name: m.Name, Epoch: now.Epoch, Sequence: now.AdminSequence + 1,
		Kind: body.AdminKind(), Body: body, Says: says, Threshold: m.Operators.Threshold, manifest: m}
	var err error
	ch.request.Statement, err = api.NewAdmin(now.ClusterID, ch.Epoch, ch.Sequence, body)
	return ch, err
}

// sign gathers signatures, and submits or keeps what they make.
func (f *statementFlags) sign(ctx context.Context, s *cli.Streams, c *client.Client, ch *change) error {
	if len(f.keys)+len(f.with) == 0 {
		return nil
	}
	if err := f.gather(s, ch); err != nil {
		return err
	}
	enough := uint64(len(ch.request.Approvals)) >= ch.Threshold
	if !enough && f.out == "" {
		return cli.Usagef("%d of %d signatures: name a file for the next operator with --out", len(ch.request.Approvals), ch.Threshold)
	}
	if f.out != "" {
		raw, err := json.MarshalIndent(ch.request, "", "  ")
		if err != nil {
			return err
		}
		if err := replaceFile(f.out, append(raw, '\n')); err != nil {
			return err
		}
		ch.File = f.out
	}
	if !enough {
		return nil
	}
	reply, err := c.Operate(ctx, ch.request)
	if err != nil {
		return err
	}
	ch.Accepted = &reply
	return nil
}

// gather adds the signatures of --with and --key. One that is not good is an error: it would be missed at the worst time.
func (f *statementFlags) gather(s *cli.Streams, ch *change) error {
	operators, message := &ch.manifest.Operators, ch.request.Statement
	var all []api.Approval
	for _, name := range f.with {
		list, err := readSignatures(s, name, message)
		if err != nil {
			return err
		}
		if good := operators.Collect(message, list); len(good) != len(list) {
			return approvalError(name, "%d of its %d signatures are not of this statement by an operator, or twice the same", len(list)-len(good), len(list))
		}
		all = append(all, list...)
	}
	for _, name := range f.keys {
		key, err := readOperator(s, name)
		if err != nil {
			return err
		}
		public := key.Public().(ed25519.PublicKey)
		if !slices.ContainsFunc(operators.Keys, func(k []byte) bool { return bytes.Equal(k, public) }) {
			return fmt.Errorf("%s: the manifest does not name this key (%x) as an operator's; nothing was signed", name, public)
		}
		all = append(all, api.Approve(message, key)...)
	}
	ch.request.Approvals = operators.Collect(message, all)
	for _, a := range ch.request.Approvals {
		ch.Signed = append(ch.Signed, hex.EncodeToString(a.Key))
	}
	return nil
}

// readSignatures reads a file that --out wrote, which must be about this very statement.
func readSignatures(s *cli.Streams, name string, message []byte) ([]api.Approval, error) {
	raw, err := s.ReadFile(name, api.MaxAdminBody)
	if err != nil {
		return nil, err
	}
	var r api.AdminRequest
	if err := api.DecodeJSON(raw, api.MaxAdminBody, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, errStatement, err)
	}
	if !bytes.Equal(r.Statement, message) {
		return nil, fmt.Errorf("%s: %w: %s; look again, and ask the operator who wrote it", name, errStatement, differs(r.Statement, message))
	}
	return r.Approvals, nil
}

// differs says in what two statements differ, for a person who has to find out why.
func differs(theirs, ours []byte) string {
	a, err := api.ParseAdmin(theirs)
	if err != nil {
		return "the file holds no statement"
	}
	b, err := api.ParseAdmin(ours)
	if err != nil {
		return "the statements cannot be compared"
	}
	switch {
	case a.ClusterID != b.ClusterID:
		return fmt.Sprintf("the file is for cluster %s", a.ClusterID)
	case a.Epoch != b.Epoch || a.Sequence != b.Sequence:
		return fmt.Sprintf("the file is for statement %d of epoch %d, the next one is %d of epoch %d: another statement has come first, so begin again without --with",
			a.Sequence, a.Epoch, b.Sequence, b.Epoch)
	case a.Kind != b.Kind:
		return fmt.Sprintf("the file is a statement of kind %s, this command makes one of kind %s", a.Kind, b.Kind)
	}
	return fmt.Sprintf("the file is a statement of the same kind, %s, with another content", a.Kind)
}

// next says what to do after the command, for people.
func (f *statementFlags) next(cmd *cobra.Command, ch *change) string {
	switch {
	case ch.Accepted != nil:
		return "The cluster has accepted it. 'claviger cluster status' shows what has become of it."
	case len(ch.Signed) == 0:
		return fmt.Sprintf("Nothing was signed. If this is what the operators have agreed on, give the same command with --key; %d of %d must sign.",
			ch.Threshold, len(ch.manifest.Operators.Keys))
	}
	return fmt.Sprintf("%d of %d signatures are in %s. The next operator gives the same command with --with %s and --key.", len(ch.Signed), ch.Threshold, ch.File, ch.File)
}

func (ch *change) write(w io.Writer) {
	table := rows{w}
	table.add("cluster", "%q, id %s", ch.Name, ch.ClusterID)
	table.add("statement", "number %d of epoch %d, kind %s", ch.Sequence, ch.Epoch, ch.Kind)
	for i, line := range ch.Says {
		name := ""
		if i == 0 {
			name = "says"
		}
		table.add(name, "%s", line)
	}
	for i, key := range ch.Signed {
		name := ""
		if i == 0 {
			name = "signed by"
		}
		table.add(name, "%s", key)
	}
	if ch.Accepted != nil {
		table.add("accepted", "at index %d", ch.Accepted.Index)
	}
	fmt.Fprintln(w)
	fmt.Fprintln(w, ch.Next)
}

// memberIn finds the holder of a slot.
func memberIn(c api.Cluster, slot string) (api.Member, error) {
	i := slices.IndexFunc(c.Members, func(m api.Member) bool { return m.Slot == slot })
	if i >= 0 {
		return c.Members[i], nil
	}
	var have []string
	for _, m := range c.Members {
		have = append(have, m.Slot)
	}
	return api.Member{}, cli.Usagef("the cluster has no slot %q; it has %s", slot, strings.Join(have, ", "))
}
