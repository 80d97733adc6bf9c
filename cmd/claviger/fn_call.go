package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/enclave/functions/engine"
)

// callResult is the result of fn call.
type callResult struct {
	Value     json.RawMessage  `json:"value"`
	Logs      []engine.LogLine `json:"logs,omitempty"`
	Truncated bool             `json:"logs_truncated,omitempty"`
}

func fnCallCommand(s *cli.Streams) *cobra.Command {
	var f fnFlags
	var argsFile string
	cmd := &cobra.Command{
		Use: "call FUNCTION [JSON...]", Short: "Call a function, end to end encrypted",
		Long: `Seals the arguments to the runtime's key and opens the sealed reply. The call is refused unless exactly the code of
` + deploymentFile + ` is deployed. Each argument is a JSON value; --args reads them as one JSON array from a file, which
keeps them out of the shell's history.

The function's value goes to standard output, what it logged to standard error.`,
		Example: `  claviger fn call --dir passwords --sim tour/world.json list '"my long token"'
  echo '["my long token","example.org"]' | claviger fn call --dir passwords --sim tour/world.json get --args -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			array, err := callArguments(s, args[1:], argsFile)
			if err != nil {
				return err
			}
			ctx, cancel, err := f.cluster.bounded(cmd.Context())
			if err != nil {
				return err
			}
			defer cancel()
			return fnCall(ctx, s, &f, args[0], array)
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&argsFile, "args", "", "read the arguments as one JSON array from this `file`; - is standard input")
	return cmd
}

// callArguments returns one JSON array.
func callArguments(s *cli.Streams, args []string, file string) ([]byte, error) {
	if file != "" {
		if len(args) > 0 {
			return nil, cli.Usagef("give the arguments either on the command line or with --args")
		}
		raw, err := s.ReadFile(file, functions.MaxArgs)
		if err != nil {
			return nil, err
		}
		var array []json.RawMessage
		if err := json.Unmarshal(raw, &array); err != nil || array == nil {
			return nil, cli.Usagef("%s does not hold one JSON array", file)
		}
		return json.Marshal(array)
	}
	array := make([]json.RawMessage, len(args))
	for i, text := range args {
		if !json.Valid([]byte(text)) {
			return nil, cli.Usagef("argument %d, %.40q, is not JSON; write strings with their quotes, as in '\"text\"'", i+1, text)
		}
		array[i] = json.RawMessage(text)
	}
	return json.Marshal(array)
}

func fnCall(ctx context.Context, s *cli.Streams, f *fnFlags, function string, args []byte) error {
	p, err := f.project()
	if err != nil {
		return err
	}
	id, code, err := readDeployment(s, filepath.Join(f.dir, deploymentFile))
	if err != nil {
		return err
	}
	c, err := f.client(ctx, p, id, code)
	if err != nil {
		return err
	}
	result, err := c.Call(ctx, function, args)
	if err != nil {
		if failed, ok := errors.AsType[*functions.CallError](err); ok && !s.JSON {
			printLogs(s.Err, failed.Logs)
		}
		return err
	}
	out := callResult{Value: result.Value, Logs: result.Logs, Truncated: result.LogsTruncated}
	if !s.JSON {
		printLogs(s.Err, out.Logs)
	}
	return s.Print(out, func(w io.Writer) { fmt.Fprintf(w, "%s\n", out.Value) })
}

func printLogs(w io.Writer, lines []engine.LogLine) {
	for _, l := range lines {
		fmt.Fprintf(w, "%s: %s\n", l.Level, l.Text)
	}
}
