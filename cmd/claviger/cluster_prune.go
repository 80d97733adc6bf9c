package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

func clusterPruneCommand(s *cli.Streams) *cobra.Command {
	var f pruneFlags
	cmd := &cobra.Command{
		Use: "prune DIR", Short: "Delete the archives of ended boots that no recovery can need any more",
		Long: `Every boot of a node leaves an archive in its data directory, and nothing else ever removes one. DIR is the data directory of a
node, or that of claviger-archive, of this cluster alone. The command looks at what is there, asks the leader who holds the slots
now, and shows which archives are of ended boots. With --delete it removes them.

All that an ended boot has acknowledged is in the archives of a majority of the voters of today, so nothing is removed while a slot
has a boot that does not vote yet, while a boot without a slot still votes, or while the epoch is stopped: then old archives are what a
recovery may start from. Only nodes whose code the node policy accepts are believed. An archive that was written to within --idle stays. DIR must hold the archive of a boot that runs in this cluster: of a machine that has left
for good delete the directory by hand. Other files are never touched, the wrapped roots above all.

After a recovery with --accept-lost-entries keep the old archives elsewhere until nobody asks about them any more: this command
counts them as ended. With 'fsync: relaxed' the running archives may be up to 1 MiB behind on disk: prune rarely there, with a long --idle.`,
		Example: `  claviger cluster prune --cluster cluster.json /var/lib/claviger
  claviger cluster prune --cluster cluster.json --delete /var/lib/claviger`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd.Context(), s, args[0]) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.remove, "delete", false, "delete what would only be shown")
	flags.DurationVar(&f.idle, "idle", 24*time.Hour, "keep archives that were written to within this `duration`")
	f.cluster.register(flags)
	return cmd
}

type pruneFlags struct {
	cluster clusterFlags
	remove  bool
	idle    time.Duration
}

// keptArchive is one archive in a data directory, and why it stays.
type keptArchive struct {
	Server  string    `json:"server"`
	Attempt uint16    `json:"attempt"`
	Bytes   int64     `json:"bytes"`
	Written time.Time `json:"written"`        // last, by the host's clock
	Keep    string    `json:"keep,omitempty"` // why; absent: no recovery can need it

	name remote.Name
}

// pruning is what the command found and did.
type pruning struct {
	Directory string        `json:"directory"`
	Epoch     uint64        `json:"epoch"`
	Archives  []keptArchive `json:"archives"`
	Ended     int           `json:"ended"`       // archives that no recovery can need
	Bytes     int64         `json:"ended_bytes"` // in them
	Deleted   bool          `json:"deleted"`
}

func (f *pruneFlags) run(ctx context.Context, s *cli.Streams, dir string) error {
	if f.idle < 0 {
		return cli.Usagef("--idle %s: write a duration of zero or more, such as 24h", f.idle)
	}
	data := remote.Directory{Root: dir}
	// What is here is listed before the leader is asked. A boot makes its archive once its admission is committed, so what
	// runs of the list holds a slot by the answer; one that came later is not in the list.
	archives, err := survey(data)
	if err != nil {
		return err
	}
	return f.cluster.believe(ctx, func(ctx context.Context, v *sight) error {
		now, err := ruling(v.fromLeader(ctx))
		if err != nil {
			return err
		}
		p := &pruning{Directory: dir, Epoch: now.Epoch, Archives: archives}
		if err := p.judge(now.Members, time.Now().Add(-f.idle)); err != nil {
			return err
		}
		if f.remove {
			if err := p.remove(data); err != nil {
				return err
			}
		}
		return s.Print(p, p.write)
	})
}

// survey lists the archives below a data directory.
func survey(data remote.Directory) ([]keptArchive, error) {
	names, err := data.List()
	if err != nil {
		return nil, err
	}
	var out []keptArchive
	for _, name := range names {
		a := keptArchive{Server: name.Server.String(), Attempt: name.Attempt, name: name}
		if err := a.measure(data.Dir(name)); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, cli.Usagef("there is no archive in %s: name the data directory of a node, or of claviger-archive", data.Root)
	}
	return out, nil
}

// measure adds up what is in dir. Files go while their archive is trimmed, which is no fault.
func (a *keptArchive) measure(dir string) error {
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info.ModTime().After(a.Written) {
			a.Written = info.ModTime()
		}
		if !d.IsDir() {
			a.Bytes += info.Size()
		}
		return nil
	})
}

// ruling returns what the cluster says if old archives are superfluous by it: the word of a leader, in an epoch that goes on,
// in which every slot has a voter and every voter a slot.
func ruling(c api.Cluster) (api.Cluster, error) {
	if c.Ended {
		return c, api.NewProblem(api.CodeEnded, "the operators have ended this epoch: what comes next is a recovery, which reads archives; nothing was deleted")
	}
	if !slices.ContainsFunc(c.Members, func(m api.Member) bool { return m.Leader && m.Lag != nil }) {
		return c, errors.New("the leader does not answer, and nobody else knows which boots hold the slots now; nothing was deleted")
	}
	for _, m := range c.Members {
		if !m.Voter {
			return c, fmt.Errorf("the newest boot of slot %s does not vote yet, so an older archive may be needed still; nothing was deleted. Wait until 'claviger cluster status' shows a voter in every slot, or remove the slot", m.Slot)
		}
	}
	if len(c.Voters) != len(c.Members) {
		return c, fmt.Errorf("%d servers vote for %d slots: one whose slot was removed votes still, and its archive counts until the others have all that it has; nothing was deleted. "+
			"Its removal waits until a majority of the other nodes answers: make them healthy", len(c.Voters), len(c.Members))
	}
	return c, nil
}

// judge says of each archive why it stays, if it does.
func (p *pruning) judge(members []api.Member, idleSince time.Time) error {
	ours := false
	for i := range p.Archives {
		a := &p.Archives[i]
		holder := slices.IndexFunc(members, func(m api.Member) bool { return m.ServerID == api.ID(a.name.Server) })
		switch {
		case holder >= 0:
			ours = true
			a.Keep = "runs in slot " + members[holder].Slot
		case a.Written.After(idleSince):
			a.Keep = "written to lately"
		default:
			p.Ended++
			p.Bytes += a.Bytes
		}
	}
	if !ours {
		return cli.Usagef("no archive in %s is of a boot that runs in this cluster: is this the directory of another one? Nothing was deleted", p.Directory)
	}
	return nil
}

// remove deletes what judge found no reason to keep. One that cannot be deleted does not keep the others.
func (p *pruning) remove(data remote.Directory) error {
	var failed []error
	for _, a := range p.Archives {
		if a.Keep == "" {
			failed = append(failed, os.RemoveAll(data.Dir(a.name)))
		}
	}
	p.Deleted = true
	return errors.Join(failed...)
}

func (p *pruning) write(w io.Writer) {
	for _, a := range p.Archives {
		word := a.Keep
		if word == "" {
			word = "ended"
		}
		fmt.Fprintf(w, "%-64s %10.1f MiB  written %s  %s\n", a.name, float64(a.Bytes)/(1<<20), a.Written.UTC().Format(time.RFC3339), word)
	}
	done := "give --delete"
	switch {
	case p.Ended == 0:
		done = "nothing to delete"
	case p.Deleted:
		done = "deleted"
	}
	fmt.Fprintf(w, "\n%d of %d archives are of ended boots, %.1f MiB: %s\n", p.Ended, len(p.Archives), float64(p.Bytes)/(1<<20), done)
}
