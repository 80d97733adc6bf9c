package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
	"github.com/claviger/claviger/policy"
)

func clusterRecoverCommand(s *cli.Streams) *cobra.Command {
	cmd := cli.Group("recover", "Bring back a cluster whose majority is lost, or that was stopped",
		recoverReturnCommand(s), recoverInspectCommand(s), recoverApproveCommand(s))
	cmd.Long = `A cluster keeps its roots in the memory of its nodes. When a majority of them is gone at a time, or all were stopped, people bring
it back: a new enclave, started with 'clavigerd --recover', reads the archives of the old nodes, and the cluster goes on in a new
epoch, under a new root generation. Old keys stay what they were.

Where old nodes still live, they come first: the enclave is told their addresses (recovery.survivors), step 1 falls away, and the
one that the operators choose as the source in step 3 stops for good and hands its roots to the enclave that they have named.

  1. The enclave writes ` + node.RecoveryRequestFile + `. Holders of shares of the recovery key check it and seal their shares to it: return.
  2. It opens the archives, compares them, and writes ` + node.RecoveryReportFile + `: inspect.
  3. More than half of the operators, and at least the threshold, sign which archive the new epoch continues, and what has
     become of every old server: approve.
  4. It reads receipts and final checkpoints once more, refuses to begin below any of them, and opens the epoch.
  5. Start the other nodes as usual.

What lies in the archives is sealed and chained, so nobody can make one up; but a host can show old copies and hide new ones.
That is why people look, why every archive there is should be shown, and why receipts of the newest key releases that clients
have kept belong beside them.`
	return cmd
}

// recoverFlags are common to all three steps.
type recoverFlags struct {
	clusterID   string // what the operator means to recover
	constraints []string
	bundle      string // collateral of the operator's own
	trust       trustFlags
}

func (f *recoverFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.clusterID, "cluster-id", "", "`id` of your cluster, as your clients pin it; needed to sign or to return a share")
	flags.StringArrayVar(&f.constraints, "constraint", nil, "`constraint` of the node policy in force, where it has changed since the genesis; may be repeated")
	flags.StringVar(&f.bundle, "bundle", "", "one-file bundle with collateral that you have fetched yourself, to judge the enclave's machine by; needed where that beside the evidence is older than three days")
	f.trust.register(flags)
}

// nodePolicy is what the operator says is in force; nil means the manifest's.
func (f *recoverFlags) nodePolicy() ([]string, error) {
	var list []string
	for _, text := range f.constraints {
		c, err := policy.ParseConstraint(text)
		if err != nil || c.Insecure() {
			return nil, cli.Usagef("--constraint %q cannot govern nodes", text)
		}
		list = append(list, c.String())
	}
	return list, nil
}

// checkCluster compares what a file is about with what the operator means.
func (f *recoverFlags) checkCluster(file string, id api.ID) error {
	if f.clusterID != "" && f.clusterID != id.String() {
		return fmt.Errorf("%s is of cluster %s and not of yours: somebody has put another file here", file, id)
	}
	return nil
}

func recoverInspectCommand(s *cli.Streams) *cobra.Command {
	var f recoverFlags
	var report string
	cmd := &cobra.Command{
		Use: "inspect", Short: "Show what a recovering enclave has found in the archives",
		Long: `Verifies the report that a recovering enclave writes, and shows it: of every archive the epoch, the last index and term, the head
of its chain of records, the size of the release log and the version of the node policy; which is the newest, and which are
behind or have diverged; which servers the next step must account for. The quote must be genuine under the root of trust
(Intel's unless --root names another), be over exactly this report, and satisfy the node policy.`,
		Example: "  claviger cluster recover inspect --report recovery-report.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			l, err := f.open(s, report)
			if err != nil {
				return err
			}
			return s.Print(l.view, l.view.write)
		},
	}
	cmd.Flags().StringVar(&report, "report", "", "`file` that the recovering enclave wrote")
	f.register(cmd.Flags())
	return cmd
}

// loaded is a report that was verified.
type loaded struct {
	report   *node.RecoveryReport
	manifest *api.Manifest
	id       api.ID
	view     *recoveryView
}

// recoveryView is a verified report in words.
type recoveryView struct {
	ClusterID string `json:"cluster_id"`
	Name      string `json:"name"`
	Threshold int    `json:"signatures_needed"`
	Operators int    `json:"operators"`
	Simulated bool   `json:"simulated"`
	*node.RecoveryReport
}

// open reads and verifies a report.
func (f *recoverFlags) open(s *cli.Streams, name string) (*loaded, error) {
	if name == "" {
		return nil, cli.Usagef("--report is missing; it lies in data/recovery/%s of the recovering node", node.RecoveryReportFile)
	}
	var r node.RecoveryReport
	if err := readJSON(s, name, &r); err != nil {
		return nil, err
	}
	j, err := f.judge(s)
	if err != nil {
		return nil, err
	}
	m, err := r.Verify(j)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, hint(err))
	}
	id, err := r.ClusterID()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := f.checkCluster(name, id); err != nil {
		return nil, err
	}
	return &loaded{report: &r, manifest: m, id: id, view: &recoveryView{ClusterID: id.String(), Name: m.Name, Threshold: signaturesNeeded(m),
		Operators: len(m.Operators.Keys), Simulated: m.Root.Simulated, RecoveryReport: &r}}, nil
}

func (f *recoverFlags) judge(s *cli.Streams) (node.Judge, error) {
	t, err := f.trust.open(s)
	if err != nil {
		return node.Judge{}, err
	}
	j := node.Judge{Verifier: t.verifier, Now: t.now()}
	if j.Constraints, err = f.nodePolicy(); err != nil || f.bundle == "" {
		return j, err
	}
	j.Collateral, err = s.ReadFile(f.bundle, attest.MaxCollateral)
	return j, err
}

// hint says what to do where an enclave of a later node policy asks, or after some days.
func hint(err error) error {
	if errors.Is(err, node.ErrOldCollateral) {
		return fmt.Errorf("%w --out bundle.json, and name it with --bundle", err)
	}
	if errors.Is(err, node.ErrNodePolicy) {
		return fmt.Errorf("%w; if the node policy has changed since the genesis, name the constraints in force with --constraint", err)
	}
	return err
}

// signaturesNeeded is the threshold, and more than half: with half, an epoch could be opened twice.
func signaturesNeeded(m *api.Manifest) int {
	return max(int(m.Operators.Threshold), len(m.Operators.Keys)/2+1)
}

func readJSON(s *cli.Streams, name string, v any) error {
	raw, err := s.ReadFile(name, node.MaxRecoveryFile)
	if err != nil {
		return err
	}
	if err := api.DecodeJSON(raw, node.MaxRecoveryFile, v); err != nil {
		return fmt.Errorf("%s is not what was expected: %w", name, err)
	}
	return nil
}

func (v *recoveryView) write(w io.Writer) {
	table := rows{w}
	if v.Simulated {
		table.add("root of trust", "SIMULATED: such a cluster protects nothing")
	}
	table.add("cluster", "%q, id %s", v.Name, v.ClusterID)
	table.add("enclave", "%s, which satisfies the node policy and has read what follows", v.Enclave)
	table.add("roots", "%s", v.roots())
	fmt.Fprintln(w)
	v.writeArchives(w)
	if a := v.Archive(v.Newest); a != nil {
		table.add("node policy", "version %d in the newest:", a.NodePolicy)
		for _, text := range a.Constraints {
			table.add("", "%q", text)
		}
		fmt.Fprintln(w)
	}
	v.writeWitnesses(w)
	v.writeServers(w)
}

// roots says whether the roots of the newest history are there.
func (v *recoveryView) roots() string {
	a := v.Archive(v.Newest)
	switch {
	case !v.Roots:
		return "with the live servers; one of them must be the source, and then the archives are opened, too"
	case a == nil:
		return "given back"
	case a.Generation == 0:
		return "given back, and NOT those of the newest history: bring the wrapped roots of its epoch"
	}
	text := fmt.Sprintf("given back up to generation %d; the new epoch takes generation %d", a.Generation, a.Generation+1)
	if n := len(a.IDs); n > 0 {
		text += fmt.Sprintf("\n                the newest of its epoch has id %s", a.IDs[n-1])
	}
	return text
}

func (v *recoveryView) writeArchives(w io.Writer) {
	fmt.Fprintf(w, "%-8s  %-5s  %-7s  %-5s  %-8s  %-6s  %-16s  %-16s  %s\n", "ARCHIVE", "EPOCH", "INDEX", "TERM", "RELEASES", "POLICY", "CHAIN", "RECORDS", "")
	for _, a := range v.Archives {
		if a.Problem != "" {
			what := "UNREADABLE"
			if !v.Roots && a.Kind == node.KindArchive {
				what = "CLOSED"
			}
			fmt.Fprintf(w, "%-8s  %-5s  %s: %s\n          %s\n", "?", epochOf(a), what, a.Problem, a.Path)
			continue
		}
		fmt.Fprintf(w, "%-8s  %-5d  %-7d  %-5d  %-8d  %-6d  %.16s  %-16.16s  %s\n", a.Slot, a.Epoch, a.Index, a.Term, a.LogSize, a.NodePolicy, a.Chain, recordsOf(a), a.Verdict)
		fmt.Fprintf(w, "          server %s%s\n", a.ServerID, note(a))
	}
	fmt.Fprintln(w)
}

// epochOf is the epoch of an archive, as far as a record has opened.
func epochOf(a node.ArchiveReport) string {
	if a.Epoch == 0 {
		return "?"
	}
	return fmt.Sprint(a.Epoch)
}

// recordsOf is the head of an archive's chain of records; a live server shows its memory.
func recordsOf(a node.ArchiveReport) string {
	switch a.Kind {
	case node.KindAlive:
		return "ALIVE"
	case node.KindStopped:
		return "STOPPED"
	}
	return a.Head.String()
}

// note is what else there is to say of an archive.
func note(a node.ArchiveReport) (text string) {
	if a.Kind == node.KindAlive {
		text += "\n          it lives, and this is its memory; it stops for good when the statement says that it is stopped"
	}
	if a.Torn != "" {
		text += "\n          torn: read up to record " + fmt.Sprint(a.Sequence) + ": " + a.Torn
	}
	if a.Ended {
		text += "\n          the epoch was ended by the operators"
		if !a.Final && a.Kind == node.KindArchive {
			text += "; no final checkpoint of this server was shown"
		}
	}
	if a.Refused != "" {
		text += "\n          CANNOT BE THE SOURCE: " + a.Refused
	}
	return text
}

func (v *recoveryView) writeWitnesses(w io.Writer) {
	if len(v.Receipts)+len(v.Finals) == 0 {
		fmt.Fprint(w, "No receipts and no final checkpoints were shown. Without any, old copies of all archives cannot be told from the newest.\n\n")
		return
	}
	for _, r := range v.Receipts {
		if r.Problem != "" {
			fmt.Fprintf(w, "receipt   NOT COUNTED, %s: %s\n", r.Problem, r.Path)
			continue
		}
		fmt.Fprintf(w, "receipt   epoch %d, %d releases: %s\n", r.Epoch, r.LogSize, r.Path)
	}
	for _, r := range v.Finals {
		if r.Problem != "" {
			fmt.Fprintf(w, "final     NOT COUNTED, %s: %s\n", r.Problem, r.Path)
			continue
		}
		fmt.Fprintf(w, "final     epoch %d, server %.16s, applied %d, %d releases\n", r.Epoch, r.ServerID, r.Applied, r.LogSize)
	}
	fmt.Fprintln(w)
}

func (v *recoveryView) writeServers(w io.Writer) {
	if v.Newest.IsZero() {
		fmt.Fprintln(w, "There is nothing to recover from: no archive could be read.")
		return
	}
	fmt.Fprintln(w, "Say of each of these servers, in the signed statement, whether it is stopped (its final checkpoint was shown, or it lives and will be asked), is destroyed, or lost:")
	servers := slices.Clone(v.Servers)
	slices.SortStableFunc(servers, func(a, b node.ReportedServer) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), strings.Compare(a.Slot, b.Slot))
	})
	newest := uint64(0)
	if a := v.Archive(v.Newest); a != nil {
		newest = a.Epoch
	}
	said := newest
	for _, o := range servers {
		if o.Epoch < newest && o.Epoch != said {
			said = o.Epoch
			fmt.Fprintf(w, "and of these too, if you choose a --source of epoch %d or below:\n", said)
		}
		fmt.Fprintf(w, "  %-8s  %s  %s\n", o.Slot, o.ServerID, v.fateOf(o))
	}
	fmt.Fprintf(w, "\n%d of %d operators must sign. The newest archive is that of server %s.\n", v.Threshold, v.Operators, v.Newest)
}

// fateOf is what is known of a server's fate.
func (v *recoveryView) fateOf(o node.ReportedServer) string {
	switch {
	case o.Stopped:
		return "it has stopped for good, and has said so: --stopped"
	case o.Final:
		return "its final checkpoint was shown: --stopped"
	case o.Alive:
		return "it lives: --stopped makes it stop, with that as proof; the source must be"
	case o.Archive:
		return "its archive is above"
	case !v.Roots:
		return "no archive is open yet"
	}
	return "no archive was shown"
}

// oldServer finds one of the servers by slot, server id or the beginning of one.
func oldServer(servers []node.ReportedServer, name string) (node.ReportedServer, error) {
	var found []node.ReportedServer
	for _, o := range servers {
		if named(name, o.Slot, o.ServerID) {
			found = append(found, o)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return node.ReportedServer{}, cli.Usagef("of no server %q must be said what became of it; name one by slot, or by the first 8 or more digits of its server id, as 'claviger cluster recover inspect' shows them", name)
	}
	return node.ReportedServer{}, cli.Usagef("%d servers of the report are called %q: name one by its server id", len(found), name)
}

// sourceArchive finds the one readable archive of a slot or server id; without a name, the newest.
func (l *loaded) sourceArchive(name string) (*node.ArchiveReport, error) {
	if name == "" {
		name = l.report.Newest.String()
	}
	var found []*node.ArchiveReport
	for i := range l.report.Archives {
		if a := &l.report.Archives[i]; a.Problem == "" && named(name, a.Slot, a.ServerID) {
			found = append(found, a)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, cli.Usagef("the report has no readable archive of %q; see 'claviger cluster recover inspect'", name)
	}
	return nil, cli.Usagef("%d archives of the report are of slot %q: name one by its server id", len(found), name)
}

// named reports whether a name is that of a slot, or the beginning of a server id.
func named(name, slot string, id api.ID) bool {
	return name == slot || len(name) >= 8 && strings.HasPrefix(id.String(), name)
}

// beside is the default place of an answer: where the node looks for it.
func beside(file, name string) string { return filepath.Join(filepath.Dir(file), name) }

// distinct reports whether nothing in the list is the same.
func distinct[T any](list []T, same func(T) bool) bool { return !slices.ContainsFunc(list, same) }
