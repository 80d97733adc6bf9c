package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
	"github.com/claviger/claviger/policy"
)

// Bounds on the files of a genesis ceremony, in bytes. A statement holds a manifest, a quote and a bundle in base64.
const (
	maxStatementFile = 2 * (api.MaxManifest + api.MaxQuote + attest.MaxCollateral)
	maxApprovalsFile = 64 << 10
)

type approveFlags struct {
	statement, out string
	clusterID      string // what the operator has read
	keys, with     []string
	trust          trustFlags
}

func clusterApproveCommand(s *cli.Streams) *cobra.Command {
	var f approveFlags
	cmd := &cobra.Command{
		Use: "approve", Short: "Show the genesis statement of a new cluster, and sign it as an operator",
		Long: `Verifies the statement that a node writes when it founds a cluster, and shows what it says: the name, the root of trust, the
constraints that nodes must satisfy, the operators, and the enclave that made the cluster's identity key. Its quote must be genuine
under the root of trust (Intel's unless --root names another), be over exactly this statement, and satisfy the node policy.

Without --key nothing is signed: read first. What a signature approves cannot be changed later, so compare every constraint
with the measurements of a build that you trust, and the operators' keys with those that the operators told you.

With --key and the --cluster-id of what you have read, so that nobody swaps the file in between, the signature is added to those
in the files of --with, and all are written to --out. Once they reach the threshold, the default is ` + node.ApprovalsFile + ` beside the
statement, which is where the node waits for it. Below the threshold, name another file and hand it to the next operator.`,
		Example: `  claviger cluster approve --statement genesis-statement.json
  claviger cluster approve --statement genesis-statement.json --cluster-id 4fe6… --key alice.key --out alice.json
  claviger cluster approve --statement genesis-statement.json --cluster-id 4fe6… --key bob.key --with alice.json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.run(s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.statement, "statement", "", "`file` that the founding node wrote")
	flags.StringVar(&f.clusterID, "cluster-id", "", "`id` of the cluster that you read about, as printed without --key; needed to sign")
	flags.StringArrayVar(&f.keys, "key", nil, "`file` with an operator's secret key")
	flags.StringArrayVar(&f.with, "with", nil, "`file` with approvals of other operators; may be repeated")
	flags.StringVar(&f.out, "out", "", "`file` to write the approvals to")
	f.trust.register(flags)
	return cmd
}

// genesisView is a statement in words. Nothing in it is verified unless Evidence.OK is true.
type genesisView struct {
	ClusterID    string   `json:"cluster_id"`
	Name         string   `json:"name"`
	RootID       string   `json:"root_id"`
	Simulated    bool     `json:"simulated"`
	NodePolicy   []string `json:"node_policy"`
	Threshold    uint64   `json:"threshold"`
	Operators    []string `json:"operators"`  // public keys, hex
	OpenSlots    uint64   `json:"open_slots"` // machines that join without a ticket
	IdentityKey  string   `json:"identity_key"`
	ManifestHash string   `json:"manifest_sha256"`
	Evidence     *verdict `json:"evidence"`
	Approved     []string `json:"approved,omitempty"` // by these operators
	Approvals    string   `json:"approvals,omitempty"`
}

func (f *approveFlags) run(s *cli.Streams) error {
	if f.statement == "" {
		return cli.Usagef("--statement is missing; it lies in data/genesis/%s of the founding node", node.StatementFile)
	}
	if len(f.keys) > 0 && f.clusterID == "" {
		return cli.Usagef("--key goes with --cluster-id: look first, without --key, and name the cluster that you have read about")
	}
	if err := keeps(f.out, f.keys); err != nil {
		return err
	}
	t, err := f.trust.open(s)
	if err != nil {
		return err
	}
	raw, err := s.ReadFile(f.statement, maxStatementFile)
	if err != nil {
		return err
	}
	var st node.Statement
	if err := api.DecodeJSON(raw, maxStatementFile, &st); err != nil {
		return fmt.Errorf("%s is not a genesis statement: %w", f.statement, err)
	}
	view, m, err := viewGenesis(&st)
	if err != nil {
		return fmt.Errorf("%s is not a genesis statement: %w", f.statement, err)
	}
	if f.clusterID != "" && f.clusterID != view.ClusterID {
		return fmt.Errorf("%s is of cluster %s and not of the one you have read about: somebody has put another file here; look again, and ask the other operators", f.statement, view.ClusterID)
	}
	now := t.now()
	view.Evidence = judgeGenesis(&st, m, t, now)
	if view.Evidence.OK && len(f.keys)+len(f.with) > 0 {
		if err := f.sign(s, &st, m, t, now, view); err != nil {
			return err
		}
	}
	if err := s.Print(view, view.write); err != nil {
		return err
	}
	return view.Evidence.err
}

func viewGenesis(st *node.Statement) (*genesisView, *api.Manifest, error) {
	m, err := api.ParseManifest(st.Manifest)
	if err != nil {
		return nil, nil, err
	}
	id, err := st.ClusterID()
	if err != nil {
		return nil, nil, err
	}
	hash := sha256.Sum256(st.Manifest)
	v := &genesisView{
		ClusterID: id.String(), Name: m.Name, RootID: hex.EncodeToString(m.Root.ID[:]), Simulated: m.Root.Simulated, NodePolicy: m.NodePolicy,
		Threshold: m.Operators.Threshold, IdentityKey: hex.EncodeToString(st.IdentityKey), ManifestHash: hex.EncodeToString(hash[:]), OpenSlots: m.OpenSlots,
	}
	for _, k := range m.Operators.Keys {
		v.Operators = append(v.Operators, hex.EncodeToString(k))
	}
	return v, m, nil
}

var errGenesisPolicy = errors.New("the node policy has a line that is not a canonical constraint for nodes")

// judgeGenesis says whether an operator may sign, and shows the enclave that made the identity key.
func judgeGenesis(st *node.Statement, m *api.Manifest, t *trust, now time.Time) *verdict {
	// The claims are for people to read, also when the verdict is no.
	j := &judge{verifier: t.verifier}
	c, err := attest.ParseCollateral(st.Collateral)
	if err != nil {
		return refused(err)
	}
	v := j.decide(st.Quote, c, now)
	if _, err := st.Verify(t.verifier, now); err != nil {
		v.deny(v.stageOr("statement"), err)
		return v
	}
	// A node may satisfy one constraint while another lets anybody in, or is there to confuse whoever reads it.
	for _, text := range m.NodePolicy {
		if c, err := policy.ParseConstraint(text); err != nil || c.Insecure() || c.String() != text {
			v.deny("policy", fmt.Errorf("%w: %q", errGenesisPolicy, text))
			break
		}
	}
	return v
}

// stageOr returns the stage at which evidence was refused, or another name if it was not.
func (v *verdict) stageOr(other string) string {
	if v.Stage != "" {
		return v.Stage
	}
	return other
}

// sign gathers approvals and writes them.
func (f *approveFlags) sign(s *cli.Streams, st *node.Statement, m *api.Manifest, t *trust, now time.Time, view *genesisView) error {
	list, err := f.gather(s, st, m)
	if err != nil {
		return err
	}
	for _, name := range f.keys {
		key, err := readOperator(s, name)
		if err != nil {
			return err
		}
		public := key.Public().(ed25519.PublicKey)
		if !slices.ContainsFunc(m.Operators.Keys, func(k []byte) bool { return bytes.Equal(k, public) }) {
			return fmt.Errorf("%s: the statement does not name this key (%x) as an operator's; nothing was signed", name, public)
		}
		signed, err := node.Sign(st, t.verifier, now, key)
		if err != nil {
			return err
		}
		list = addApprovals(list, signed...)
	}
	for _, a := range list {
		view.Approved = append(view.Approved, hex.EncodeToString(a.Key))
	}
	enough := uint64(len(list)) >= m.Operators.Threshold
	if view.Approvals = f.out; f.out == "" {
		view.Approvals = filepath.Join(filepath.Dir(f.statement), node.ApprovalsFile)
	}
	// The node reads the file once, and gives up if it does not suffice.
	if filepath.Base(view.Approvals) == node.ApprovalsFile && !enough {
		return cli.Usagef("%d of %d approvals: write them to another file with --out, and let the next operator add to it with --with",
			len(list), m.Operators.Threshold)
	}
	raw, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(view.Approvals, append(raw, '\n'))
}

// gather reads the approvals of others. One that is not good is an error: it would be missed at the worst time.
func (f *approveFlags) gather(s *cli.Streams, st *node.Statement, m *api.Manifest) ([]node.Approval, error) {
	message, err := st.Message()
	if err != nil {
		return nil, err
	}
	var all []node.Approval
	for _, name := range f.with {
		raw, err := s.ReadFile(name, maxApprovalsFile)
		if err != nil {
			return nil, err
		}
		var list []node.Approval
		if err := api.DecodeJSON(raw, maxApprovalsFile, &list); err != nil {
			return nil, approvalError(name, "%v", err)
		}
		for _, a := range list {
			switch {
			case !slices.ContainsFunc(m.Operators.Keys, func(k []byte) bool { return bytes.Equal(k, a.Key) }):
				return nil, approvalError(name, "%x is not an operator", a.Key)
			case len(a.Key) != ed25519.PublicKeySize || !ed25519.Verify(a.Key, message, a.Signature):
				return nil, approvalError(name, "the signature of %x is over something else", a.Key)
			}
			all = addApprovals(all, a)
		}
	}
	return all, nil
}

// addApprovals adds those of operators who are not in the list yet.
func addApprovals(list []node.Approval, more ...node.Approval) []node.Approval {
	for _, a := range more {
		if !slices.ContainsFunc(list, func(b node.Approval) bool { return bytes.Equal(a.Key, b.Key) }) {
			list = append(list, a)
		}
	}
	return list
}

func (v *genesisView) write(w io.Writer) {
	table := rows{w}
	if v.Simulated {
		table.add("root of trust", "SIMULATED, %s: such a cluster protects nothing", v.RootID)
	} else {
		table.add("root of trust", "Intel's, %s", v.RootID)
	}
	table.add("cluster", "%q, id %s", v.Name, v.ClusterID)
	for i, text := range v.NodePolicy {
		table.add(fmt.Sprintf("node policy %d", i+1), "%q", text)
	}
	table.add("operators", "%d of %d must sign", v.Threshold, len(v.Operators))
	for _, key := range v.Operators {
		table.add("", "%s", key)
	}
	table.add("open slots", "%d machines may join without a ticket of the operators", v.OpenSlots)
	table.add("identity key", "%s", v.IdentityKey)
	table.add("manifest", "SHA-256 %s", v.ManifestHash)
	fmt.Fprintln(w)
	if e := v.Evidence; e.Claims != nil {
		e.write(w)
	} else {
		table.add("verdict", "REFUSED at stage %s", e.Stage)
	}
	fmt.Fprintln(w)
	switch missing := int(v.Threshold) - len(v.Approved); {
	case !v.Evidence.OK:
		fmt.Fprintln(w, "Nothing was signed: this statement must not be.")
	case v.Approvals == "":
		fmt.Fprintln(w, "Nothing was signed. If all of this is as you agreed, sign it with --key and --cluster-id "+v.ClusterID+".")
	case missing > 0:
		fmt.Fprintf(w, "Wrote %d of %d approvals to %s. The next operator adds theirs with --with %s.\n", len(v.Approved), v.Threshold, v.Approvals, v.Approvals)
	default:
		fmt.Fprintf(w, "Wrote %d approvals to %s, which suffice. The node waits for them in %s beside its statement.\n",
			len(v.Approved), v.Approvals, node.ApprovalsFile)
	}
}
