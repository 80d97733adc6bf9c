package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
)

type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func versionCommand(s *cli.Streams) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version and how this binary was built",
		Example: "  claviger version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			return s.Print(v, func(w io.Writer) {
				fmt.Fprintf(w, "claviger %s (%s, %s)\n", v.Version, v.Go, v.Platform)
				if v.Revision != "" {
					fmt.Fprintf(w, "revision %s, modified %t\n", v.Revision, v.Modified)
				}
			})
		},
	}
}

func readVersion() versionInfo {
	v := versionInfo{Version: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}
