package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// Exit codes of every binary.
const (
	ExitDone   = 0
	ExitFailed = 1 // refused, or failed while doing it
	ExitUsage  = 2 // the command line or a configuration file is wrong; nothing was attempted
)

// Streams is the world a command sees: nothing in the tree reads os.Stdin, os.Args or the environment itself.
type Streams struct {
	Env  []string
	In   io.Reader
	Out  io.Writer
	Err  io.Writer
	JSON bool // set by --json
}

// UsageError marks an error as the caller's: exit code 2.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError. The sentence says what to do.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Main runs a binary with the world of its process until SIGINT or SIGTERM, and exits with its code.
func Main(run func(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Run executes the command tree below root with args and returns the exit code. It adds the --json flag, reports the
// error if there is one, and treats everything cobra refuses before a command starts as wrong usage.
func Run(ctx context.Context, root *cobra.Command, s *Streams, args []string) int {
	started := false
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentFlags().BoolVar(&s.JSON, "json", false, "print results and errors as JSON")
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(args)
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitDone
	}
	if _, usage := errors.AsType[*UsageError](err); !started && !usage {
		err = &UsageError{err}
	}
	return s.report(cmd, err)
}

// Group is a command that only holds others: alone it prints its help, with an unknown word it is wrong usage.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; '%s --help' lists the commands", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	group.AddCommand(commands...)
	return group
}

// Print writes a result: v as one line of JSON under --json, else what human writes, without what is not text: see Plain.
func (s *Streams) Print(v any, human func(w io.Writer)) error {
	if s.JSON {
		return s.PrintJSON(v)
	}
	human(plain{s.Out})
	return nil
}

// PrintJSON writes v as one line of JSON to standard output.
func (s *Streams) PrintJSON(v any) error {
	enc := json.NewEncoder(s.Out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Failure is the JSON form of an error.
type Failure struct {
	Error    string        `json:"error"`
	Exit     int           `json:"exit"`
	Code     api.Code      `json:"code,omitempty"`   // when a service refused
	Stage    string        `json:"stage,omitempty"`  // when evidence was refused
	Reason   string        `json:"reason,omitempty"` // when the error has a name: see Reasoned
	Failures []api.Failure `json:"failures,omitempty"`
}

// Reasoned is an error with a name for programs, which stays the same when its text changes.
type Reasoned interface {
	error
	Reason() string // lower case, words joined by underscores
}

// Describe sorts err into its JSON form: stage and failed clauses are there when the error carries them.
func Describe(err error) Failure {
	f := Failure{Error: err.Error(), Exit: ExitFailed}
	if _, ok := errors.AsType[*UsageError](err); ok {
		f.Exit = ExitUsage
	}
	if e, ok := errors.AsType[*attest.Error](err); ok {
		f.Stage = string(e.Stage)
	}
	if r, ok := errors.AsType[Reasoned](err); ok {
		f.Reason = r.Reason()
	}
	if d, ok := errors.AsType[*policy.Denied](err); ok {
		f.Failures = Clauses(d)
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		f.Code, f.Stage, f.Failures = p.Code, p.Stage, p.Failures
	}
	return f
}

// Clauses returns the failed clauses of a denial in their JSON form.
func Clauses(d *policy.Denied) []api.Failure {
	out := make([]api.Failure, len(d.Failures))
	for i, f := range d.Failures {
		out[i] = api.Failure(f)
	}
	return out
}

func (s *Streams) report(cmd *cobra.Command, err error) int {
	f := Describe(err)
	if s.JSON {
		enc := json.NewEncoder(s.Err)
		enc.SetEscapeHTML(false)
		if enc.Encode(f) != nil {
			return ExitFailed
		}
		return f.Exit
	}
	fmt.Fprintf(s.Err, "%s: %s\n", cmd.CommandPath(), Plain(err.Error()))
	if f.Exit == ExitUsage {
		fmt.Fprintf(s.Err, "See '%s --help'.\n", cmd.CommandPath())
	}
	return f.Exit
}
