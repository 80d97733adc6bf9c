// Package daemon is what the long-running binaries share: one YAML file on the command line, a logger, and a graceful stop
// at the end of the context.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/config"
)

// ErrConfig says that a configuration cannot run; the text says which key and what to write. It is wrong usage.
var ErrConfig = errors.New("configuration")

// Log is the log section of a configuration.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (the default), warn or error
	Format string `yaml:"format"` // text (the default) or json; --json forces json
}

// Logger returns the logger that the section describes, writing to standard error.
func (l Log) Logger(s *cli.Streams) (*slog.Logger, error) {
	var level slog.Level
	switch l.Level {
	case "", "info":
	case "debug", "warn", "error":
		if err := level.UnmarshalText([]byte(l.Level)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: log.level %q: write debug, info, warn or error", ErrConfig, l.Level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch {
	case l.Format == "json", l.Format == "" && s.JSON, l.Format == "text" && s.JSON:
		return slog.New(slog.NewJSONHandler(s.Err, options)), nil
	case l.Format == "", l.Format == "text":
		return slog.New(slog.NewTextHandler(s.Err, options)), nil
	}
	return nil, fmt.Errorf("%w: log.format %q: write text or json", ErrConfig, l.Format)
}

// Config is a configuration that a daemon can be started with.
type Config interface {
	// Resolve checks the configuration and makes its paths absolute, relative ones starting from dir.
	Resolve(dir string) error
}

// Load reads the file strictly and resolves it. Every fault of the file is wrong usage.
func Load[T any, P interface {
	*T
	Config
}](name string) (*T, error) {
	c, err := config.Load[T](name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%s does not exist; 'claviger sim init DIR' writes examples", name)
	}
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	dir, err := filepath.Abs(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	if err := P(&c).Resolve(dir); err != nil {
		return nil, cli.Usagef("%s: %w", name, err)
	}
	return &c, nil
}

// Path makes a configured path absolute.
func Path(key, path, dir string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("%w: %s is missing; write a path", ErrConfig, key)
	}
	return cli.Below(dir, path), nil
}

// Address checks a configured host:port.
func Address(key, value string) error {
	host, port, err := net.SplitHostPort(value)
	if err != nil || port == "" || len(value) > 256 || strings.ContainsAny(host, " \t") {
		return fmt.Errorf("%w: %s %q is not host:port", ErrConfig, key, value)
	}
	return nil
}

// Command returns the root command of a daemon: NAME CONFIG. Start blocks until ctx ends or the daemon fails.
func Command(use, short, long, example string, start func(ctx context.Context, file string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := start(cmd.Context(), args[0])
			if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return nil // told to stop, and stopped
			}
			return err
		},
	}
}
