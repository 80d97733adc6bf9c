package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/kdsd"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

type returnFlags struct {
	recoverFlags
	request, out string
	genesis      bool // the policy of the genesis is in force
	shares, with []string
}

func recoverReturnCommand(s *cli.Streams) *cobra.Command {
	var f returnFlags
	cmd := &cobra.Command{
		Use: "return", Short: "Return a share of the recovery key to a recovering enclave",
		Long: `Verifies the request that a recovering enclave writes: its quote must be genuine, be over exactly this request, and satisfy the node
policy, that of the genesis unless --constraint names the one in force. Without --share nothing leaves your hands: look first.

With --share say which node policy is in force, by --constraint as 'claviger cluster policy' last showed it, or by --genesis-policy that
it has never changed: a host may start code that the operators have shut out since, and the genesis names it. With it and the
--cluster-id of your cluster, the share is sealed to that one enclave: neither the host that carries the
file nor the same machine after a restart can open it. Shares of others, in the files of --with, are kept beside it. Once they
reach the threshold, the default of --out is ` + node.RecoverySharesFile + ` beside the request, where the enclave waits for it.`,
		Example: `  claviger cluster recover return --request recovery-request.json
  claviger cluster recover return --request recovery-request.json --cluster-id 4fe6… --genesis-policy --share alice.share --out alice.json
  claviger cluster recover return --request recovery-request.json --cluster-id 4fe6… --genesis-policy --share bob.share --with alice.json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.run(s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.request, "request", "", "`file` that the recovering enclave wrote")
	flags.BoolVar(&f.genesis, "genesis-policy", false, "the node policy in force is that of the genesis: it has never changed")
	flags.StringArrayVar(&f.shares, "share", nil, "`file` with a share of the recovery key; may be repeated")
	flags.StringArrayVar(&f.with, "with", nil, "`file` with sealed shares of others; may be repeated")
	flags.StringVar(&f.out, "out", "", "`file` to write the sealed shares to")
	f.register(flags)
	return cmd
}

// requestView is a verified request in words.
type requestView struct {
	ClusterID  string   `json:"cluster_id"`
	Name       string   `json:"name"`
	Enclave    api.ID   `json:"enclave"`
	Simulated  bool     `json:"simulated"`
	Genesis    bool     `json:"genesis_policy"` // the enclave was judged by the policy of the genesis
	NodePolicy []string `json:"node_policy"`    // that it was judged by
	Needed     uint64   `json:"shares_needed"`
	Sealed     int      `json:"shares_sealed"`
	Out        string   `json:"out,omitempty"`
}

func (f *returnFlags) run(s *cli.Streams) error {
	if f.request == "" {
		return cli.Usagef("--request is missing; it lies in data/recovery/%s of the recovering node", node.RecoveryRequestFile)
	}
	if len(f.shares) > 0 && f.clusterID == "" {
		return cli.Usagef("--share goes with --cluster-id: look first, without --share, and name the cluster whose share you hold")
	}
	if f.genesis && len(f.constraints) > 0 {
		return cli.Usagef("--genesis-policy says that the node policy has never changed, and --constraint that it has: give one of them")
	}
	if len(f.shares) > 0 && !f.genesis && len(f.constraints) == 0 {
		return cli.Usagef("--share goes with the node policy in force: name each of its constraints with --constraint, as 'claviger cluster policy' last showed them, " +
			"or say with --genesis-policy that it has never changed. Code that was shut out since must not get your share")
	}
	if err := keeps(f.out, f.shares); err != nil {
		return err
	}
	var r node.RecoveryRequest
	if err := readJSON(s, f.request, &r); err != nil {
		return err
	}
	j, err := f.judge(s)
	if err != nil {
		return err
	}
	m, err := r.Verify(j)
	if err != nil {
		return fmt.Errorf("%s: %w; nothing was sealed", f.request, hint(err))
	}
	id, err := r.ClusterID()
	if err != nil {
		return err
	}
	if err := f.checkCluster(f.request, id); err != nil {
		return err
	}
	policy := j.Constraints
	if policy == nil {
		policy = m.NodePolicy
	}
	view := &requestView{ClusterID: id.String(), Name: m.Name, NodePolicy: policy, Genesis: len(f.constraints) == 0, Enclave: r.Enclave, Simulated: m.Root.Simulated, Needed: m.Operators.Threshold}
	if len(f.shares)+len(f.with) > 0 {
		if err := f.seal(s, &r, view); err != nil {
			return err
		}
	}
	return s.Print(view, view.write)
}

// seal seals shares to the enclave and writes them with those of others.
func (f *returnFlags) seal(s *cli.Streams, r *node.RecoveryRequest, view *requestView) error {
	info, err := r.ShareInfo()
	if err != nil {
		return err
	}
	var list []node.SealedShare
	for _, name := range f.with {
		var more []node.SealedShare
		if err := readJSON(s, name, &more); err != nil {
			return err
		}
		list = append(list, more...)
	}
	for _, name := range f.shares {
		raw, err := s.ReadFile(name, kdsd.MaxShareFile)
		if err != nil {
			return err
		}
		share, err := kdsd.ParseShareFile(raw)
		clear(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		sealed, err := share.Seal(r.HPKEKey, info)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, node.SealedShare{Sealed: sealed})
	}
	view.Sealed = len(list)
	if view.Out = f.out; f.out == "" {
		view.Out = beside(f.request, node.RecoverySharesFile)
	}
	if filepath.Base(view.Out) == node.RecoverySharesFile && uint64(len(list)) < view.Needed {
		return cli.Usagef("%d of %d shares: write them to another file with --out, and let the next holder add to it with --with", len(list), view.Needed)
	}
	raw, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(view.Out, append(raw, '\n'))
}

func (v *requestView) write(w io.Writer) {
	table := rows{w}
	if v.Simulated {
		table.add("root of trust", "SIMULATED: such a cluster protects nothing")
	}
	table.add("cluster", "%q, id %s", v.Name, v.ClusterID)
	which := "this node policy, which you have named:"
	if v.Genesis {
		which = "the node policy of the GENESIS; if it has changed since, name the one in force with --constraint:"
	}
	table.add("enclave", "%s, which satisfies %s", v.Enclave, which)
	for _, text := range v.NodePolicy {
		table.add("", "%q", text)
	}
	table.add("shares", "%d give back the roots", v.Needed)
	fmt.Fprintln(w)
	switch {
	case v.Out == "":
		fmt.Fprintln(w, "Nothing was sealed. If this is your cluster, and it is to be recovered, return your share with --share, --cluster-id "+v.ClusterID+" and the node policy in force.")
	case uint64(v.Sealed) < v.Needed:
		fmt.Fprintf(w, "Wrote %d of %d sealed shares to %s. The next holder adds theirs with --with %s.\n", v.Sealed, v.Needed, v.Out, v.Out)
	default:
		fmt.Fprintf(w, "Wrote %d sealed shares to %s, which suffice. The enclave waits for them in %s beside its request.\n", v.Sealed, v.Out, node.RecoverySharesFile)
	}
}
