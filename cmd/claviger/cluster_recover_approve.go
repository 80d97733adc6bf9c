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
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

type recoverApproveFlags struct {
	recoverFlags
	report, source, out      string
	read                     string // the hash of what the operator has read
	epoch                    uint64
	stopped, destroyed, lost []string
	acceptServers            bool // that lost servers may go on
	acceptEntries            bool // that another history is lost
	keys, with               []string
	ended                    []string // enclaves that were signed for and run no more
}

func recoverApproveCommand(s *cli.Streams) *cobra.Command {
	var f recoverApproveFlags
	cmd := &cobra.Command{
		Use: "approve", Short: "Sign which archive the new epoch continues",
		Long: `Verifies a report as inspect does, and signs the statement that opens the new epoch: which archive it continues (--source), in the one
enclave that wrote the report, and what became of every server of the old epoch. A server is --stopped if its signed final
checkpoint was shown to the enclave, or if it lives: then this statement stops it, and its answer is the proof. It is --destroyed if you have seen to it that it runs no more, --lost if you do not know.
"all" stands for all servers that are not named otherwise.

What a recovery costs is accepted in words, which are signed, and never more than it costs. With a server that is --lost,
--accept-lost-servers: its clients may be answered from the past, and what it acknowledges is lost. With a source that is not the
newest, of whose epoch two histories fork, or that an epoch was opened after, --accept-lost-entries: what was acknowledged there only is lost. Neither stands for the other.

Without --key nothing is signed: read first. With --key goes --statement, the hash of the statement that you have read, so that
nobody swaps the report in between.

At least the threshold of the operators, and always more than half of them, must sign. The first makes the statement; the
others give the same flags and the file of --with, and sign only if it says the same.

Beside the key, in KEY.epochs, is kept which epoch was signed last, and for which enclave: an operator signs an epoch once, and another
enclave only when the one before has --ended, unless what it has made is continued. Keep that file with the key.`,
		Example: `  claviger cluster recover approve --report recovery-report.json --cluster-id 4fe6… --source a --destroyed all
  claviger cluster recover approve --report recovery-report.json --cluster-id 4fe6… --source a --destroyed all --statement 9b1c… --key alice.key --out alice.json
  claviger cluster recover approve --report recovery-report.json --cluster-id 4fe6… --source a --destroyed all --statement 9b1c… --key bob.key --with alice.json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return f.run(s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.report, "report", "", "`file` that the recovering enclave wrote")
	flags.StringVar(&f.source, "source", "", "`server` whose archive the new epoch continues: its slot or server id; default the newest")
	flags.Uint64Var(&f.epoch, "epoch", 0, "`number` of the new epoch; default one more than the newest seen")
	flags.StringSliceVar(&f.stopped, "stopped", nil, "`server` whose final checkpoint was shown, or that lives and is to stop; may be repeated")
	flags.StringSliceVar(&f.destroyed, "destroyed", nil, "`server` that runs no more; may be repeated")
	flags.StringSliceVar(&f.lost, "lost", nil, "`server` of which nobody knows; may be repeated")
	flags.BoolVar(&f.acceptServers, "accept-lost-servers", false, "accept in words that a server which is --lost may go on")
	flags.BoolVar(&f.acceptEntries, "accept-lost-entries", false, "accept in words that a history which the source leaves behind is lost")
	flags.StringSliceVar(&f.ended, "ended", nil, "`enclave` that you have signed an earlier epoch for and that runs no more, by 16 or more digits; needed where this one goes on from before that epoch")
	flags.StringVar(&f.read, "statement", "", "`hash` of the statement that you have read, as printed without --key, 16 or more digits of it; needed to sign")
	flags.StringArrayVar(&f.keys, "key", nil, "`file` with an operator's secret key")
	flags.StringArrayVar(&f.with, "with", nil, "`file` with approvals of other operators; may be repeated")
	flags.StringVar(&f.out, "out", "", "`file` to write the approvals to")
	f.register(flags)
	return cmd
}

// statementView is what is signed, in words.
type statementView struct {
	SHA256    string                 `json:"statement_sha256"`
	Statement *api.RecoveryStatement `json:"statement"`
	Needed    int                    `json:"signatures_needed"`
	Approved  []string               `json:"approved"`
	Out       string                 `json:"out,omitempty"`
}

func (f *recoverApproveFlags) run(s *cli.Streams) error {
	if f.clusterID == "" {
		return cli.Usagef("--cluster-id is missing; name your cluster, as your clients pin it")
	}
	if len(f.keys) > 0 && len(f.read) < minRead {
		return cli.Usagef("--key goes with --statement: look first, without --key, and name the statement that you have read by %d or more digits of its hash", minRead)
	}
	for _, key := range f.keys {
		if err := keeps(f.out, []string{key, memoryFile(key)}); err != nil {
			return err
		}
	}
	l, err := f.open(s, f.report)
	if err != nil {
		return err
	}
	statement, err := f.statement(l)
	if err != nil {
		return err
	}
	raw, err := statement.Marshal()
	if err != nil {
		return err
	}
	hash := sha256.Sum256(raw)
	view := &statementView{SHA256: hex.EncodeToString(hash[:]), Statement: statement, Needed: signaturesNeeded(l.manifest)}
	if f.read != "" && !strings.HasPrefix(view.SHA256, f.read) {
		return fmt.Errorf("%s: %w: %s", f.report, errNotRead, view.SHA256)
	}
	if len(f.keys)+len(f.with) > 0 {
		if err := f.sign(s, l, raw, view); err != nil {
			return err
		}
	}
	return s.Print(view, view.write)
}

// minRead is how much of a hash names the statement that an operator has read.
const minRead = 16

var errNotRead = errors.New("report and flags make another statement than the one you have read; somebody has put another report here, or your flags differ: " +
	"look again, without --key. Nothing was signed, and it would have been")

// statement is what the flags say about the report.
func (f *recoverApproveFlags) statement(l *loaded) (*api.RecoveryStatement, error) {
	r := l.report
	newest := uint64(0)
	a, err := l.sourceArchive(f.source)
	if err != nil {
		return nil, err
	}
	if a.Refused != "" {
		return nil, fmt.Errorf("that archive cannot be the source: %s", a.Refused)
	}
	for _, b := range r.Archives {
		newest = max(newest, b.Epoch)
	}
	st := &api.RecoveryStatement{Label: api.RecoveryLabel, ClusterID: l.id, Epoch: f.epoch, Generation: a.Generation + 1, Source: a.Source(), Enclave: r.Enclave}
	if st.Epoch == 0 {
		st.Epoch = newest + 1
	}
	if st.Epoch <= newest {
		return nil, cli.Usagef("--epoch %d: epoch %d has been; choose a higher one", st.Epoch, newest)
	}
	if st.Old, err = f.fates(node.AccountFor(l.report.Servers, a.Epoch)); err != nil {
		return nil, err
	}
	st.Accept = api.Accept(f.acceptServers, f.acceptEntries)
	return st, f.checkAccepted(st.Old, a)
}

// checkAccepted wants the operator to accept what this recovery costs, and nothing else: words that were not needed when they
// were signed would stand for what comes later.
func (f *recoverApproveFlags) checkAccepted(old []api.OldServer, source *node.ArchiveReport) error {
	at := slices.IndexFunc(old, func(o api.OldServer) bool { return o.Fate == api.FateLost })
	switch {
	case at >= 0 && !f.acceptServers:
		return cli.Usagef("server %.16s of slot %s is lost: it may go on answering those who have not seen the new epoch; sign that you accept it with --accept-lost-servers", old[at].ServerID, old[at].Slot)
	case at < 0 && f.acceptServers:
		return cli.Usagef("--accept-lost-servers: you say of no server that it is lost; what a source leaves behind is accepted with --accept-lost-entries")
	case source.Leaves != "" && !f.acceptEntries:
		return cli.Usagef("%s; choose another --source, or sign with --accept-lost-entries that what was acknowledged there only is lost", source.Leaves)
	case source.Leaves == "" && f.acceptEntries:
		return cli.Usagef("--accept-lost-entries: this source leaves nothing behind that the enclave was shown; that a lost server may go on is accepted with --accept-lost-servers")
	}
	return nil
}

// everyServer stands for all that no flag names.
const everyServer = "all"

// fates says of each server what became of it.
func (f *recoverApproveFlags) fates(servers []node.ReportedServer) ([]api.OldServer, error) {
	said, rest := map[api.ID]string{}, ""
	for _, group := range []struct {
		fate  string
		names []string
	}{{api.FateStopped, f.stopped}, {api.FateDestroyed, f.destroyed}, {api.FateLost, f.lost}} {
		for _, name := range group.names {
			if name == everyServer {
				if rest != "" {
					return nil, cli.Usagef("\"all\" is given twice")
				}
				rest = group.fate
				continue
			}
			o, err := oldServer(servers, name)
			if err != nil {
				return nil, err
			}
			if before, twice := said[o.ServerID]; twice {
				return nil, cli.Usagef("%s is said to be %s and %s", name, before, group.fate)
			}
			said[o.ServerID] = group.fate
		}
	}
	var list []api.OldServer
	for _, o := range servers {
		fate, ok := said[o.ServerID]
		if !ok {
			fate = rest
		}
		if err := checkFate(o, fate); err != nil {
			return nil, err
		}
		list = append(list, api.OldServer{Slot: o.Slot, ServerID: o.ServerID, Fate: fate})
	}
	slices.SortFunc(list, func(a, b api.OldServer) int { return bytes.Compare(a.ServerID[:], b.ServerID[:]) })
	return list, nil
}

func checkFate(o node.ReportedServer, fate string) error {
	switch {
	case fate == "":
		return cli.Usagef("what became of server %.16s of slot %s? Name it with --stopped, --destroyed or --lost", o.ServerID, o.Slot)
	case fate == api.FateDestroyed && o.Alive && !o.Stopped:
		return cli.Usagef("server %.16s of slot %s has answered the enclave, so it is not destroyed: name it with --stopped, and it will be", o.ServerID, o.Slot)
	case fate == api.FateStopped && !o.Final && !o.Alive:
		return cli.Usagef("server %.16s of slot %s is not proved to be stopped: its final checkpoint was not shown to the enclave, and it does not answer; show it, or name the server with --destroyed or --lost", o.ServerID, o.Slot)
	}
	return nil
}

var errOtherStatement = errors.New("the operators before you have signed something else than your flags say")

// sign gathers approvals of this very statement, adds those of the keys, and writes them.
func (f *recoverApproveFlags) sign(s *cli.Streams, l *loaded, raw []byte, view *statementView) error {
	operators := l.manifest.Operators
	var lists [][]api.Approval
	for _, name := range f.with {
		var brought node.RecoveryApprovals
		if err := readJSON(s, name, &brought); err != nil {
			return err
		}
		if !bytes.Equal(brought.Statement, raw) {
			return fmt.Errorf("%s: %w: %s", name, errOtherStatement, difference(brought.Statement, view.Statement))
		}
		if valid := operators.Collect(raw, brought.Approvals); len(valid) != len(brought.Approvals) {
			return approvalError(name, "%d of its %d signatures are not good", len(brought.Approvals)-len(valid), len(brought.Approvals))
		}
		lists = append(lists, brought.Approvals)
	}
	for _, name := range f.keys {
		approval, err := f.signWith(s, l, name, raw, view.Statement)
		if err != nil {
			return err
		}
		lists = append(lists, approval)
	}
	all := operators.Collect(raw, lists...)
	for _, a := range all {
		view.Approved = append(view.Approved, hex.EncodeToString(a.Key))
	}
	return f.writeApprovals(raw, all, view)
}

// signWith signs with one key, after what it remembers allows it and before anybody sees the signature.
func (f *recoverApproveFlags) signWith(s *cli.Streams, l *loaded, name string, raw []byte, st *api.RecoveryStatement) ([]api.Approval, error) {
	if name == "-" {
		return nil, cli.Usagef("--key -: beside the file of the key is kept which epoch it has signed, so it must have one")
	}
	key, err := readOperator(s, name)
	if err != nil {
		return nil, err
	}
	public := key.Public().(ed25519.PublicKey)
	if distinct(l.manifest.Operators.Keys, func(k []byte) bool { return bytes.Equal(k, public) }) {
		return nil, fmt.Errorf("%s: the cluster does not name this key (%x) as an operator's; nothing was signed", name, public)
	}
	memory, err := readMemory(s, name)
	if err != nil {
		return nil, err
	}
	r := rememberedEpoch{ClusterID: l.id, Epoch: st.Epoch, Statement: sha256.Sum256(raw), NodePolicy: st.Source.NodePolicy, Enclave: st.Enclave}
	if err := memory.allow(r, st.Source.Epoch, f.ended); err != nil {
		return nil, fmt.Errorf("%s: %w; nothing was signed", name, err)
	}
	if err := memory.remember(name, r); err != nil {
		return nil, err
	}
	return api.Approve(raw, key), nil
}

func (f *recoverApproveFlags) writeApprovals(raw []byte, all []api.Approval, view *statementView) error {
	if view.Out = f.out; f.out == "" {
		view.Out = beside(f.report, node.RecoveryApprovalsFile)
	}
	if filepath.Base(view.Out) == node.RecoveryApprovalsFile && len(all) < view.Needed {
		return cli.Usagef("%d of %d approvals: write them to another file with --out, and let the next operator add to it with --with", len(all), view.Needed)
	}
	out, err := json.MarshalIndent(node.RecoveryApprovals{Statement: raw, Approvals: all}, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(view.Out, append(out, '\n'))
}

// difference says in what two statements differ, as far as a few words go.
func difference(raw []byte, ours *api.RecoveryStatement) string {
	theirs, err := api.ParseRecovery(raw)
	switch {
	case err != nil:
		return "theirs does not parse"
	case theirs.Enclave != ours.Enclave:
		return fmt.Sprintf("theirs is for enclave %.16s, this report is of %.16s", theirs.Enclave, ours.Enclave)
	case theirs.Epoch != ours.Epoch:
		return fmt.Sprintf("theirs opens epoch %d, yours epoch %d", theirs.Epoch, ours.Epoch)
	case theirs.Source != ours.Source:
		return fmt.Sprintf("theirs continues the archive of %.16s, yours that of %.16s", theirs.Source.ServerID, ours.Source.ServerID)
	case theirs.Accept != ours.Accept:
		return "they accept other losses"
	}
	return "they say other things about the old servers"
}

func (v *statementView) write(w io.Writer) {
	table, st := rows{w}, v.Statement
	table.add("cluster", "%s", st.ClusterID)
	table.add("new epoch", "%d, root generation %d", st.Epoch, st.Generation)
	table.add("continues", "server %s of epoch %d", st.Source.ServerID, st.Source.Epoch)
	table.add("", "entry %d of term %d, %d releases, node policy version %d", st.Source.Applied, st.Source.Term, st.Source.LogSize, st.Source.NodePolicy)
	table.add("", "chain %s", st.Source.Chain)
	table.add("in enclave", "%s, and in no other", st.Enclave)
	old := slices.Clone(st.Old)
	slices.SortStableFunc(old, func(a, b api.OldServer) int { return strings.Compare(a.Slot, b.Slot) })
	for _, o := range old {
		table.add("old server", "%-8s  %-9s  %s", o.Slot, o.Fate, o.ServerID)
	}
	if st.AcceptsServers() {
		table.add("ACCEPTED", "%s", api.AcceptServersSentence)
	}
	if st.AcceptsEntries() {
		table.add("ACCEPTED", "%s", api.AcceptEntriesSentence)
	}
	table.add("statement", "SHA-256 %s", v.SHA256)
	fmt.Fprintln(w)
	switch n := len(v.Approved); {
	case v.Out == "":
		fmt.Fprintf(w, "Nothing was signed. If all of this is so, sign it with --key and --statement %.16s.\n", v.SHA256)
	case n < v.Needed:
		fmt.Fprintf(w, "Wrote %d of %d approvals to %s. The next operator adds theirs with --with %s.\n", n, v.Needed, v.Out, v.Out)
	default:
		fmt.Fprintf(w, "Wrote %d approvals to %s, which suffice. The enclave waits for them in %s beside its report.\n", n, v.Out, node.RecoveryApprovalsFile)
	}
}
