package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// shellBlock matches what a guide has for its readers to run.
var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// guide DOC HEADING OUT [OLD NEW]… writes the shell blocks below a heading of a guide, up to the next heading, as one shell script, after
// replacements of what cannot be the same for every test, such as ports.
func guide(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := os.ReadFile(filepath.Join(docs, args[0]))
	ts.Check(err)
	_, section, found := strings.Cut(string(raw), "\n"+args[1]+"\n")
	if !found {
		ts.Fatalf("%s has no heading %q", args[0], args[1])
	}
	section, _, _ = strings.Cut(section, "\n##")
	var b strings.Builder
	for _, block := range shellBlock.FindAllStringSubmatch(section, -1) {
		b.WriteString(block[1])
	}
	script := b.String()
	for pair := args[3:]; len(pair) > 1; pair = pair[2:] {
		if !strings.Contains(script, pair[0]) {
			ts.Fatalf("the guide does not say %q", pair[0])
		}
		script = strings.ReplaceAll(script, pair[0], pair[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte("set -euo pipefail\n"+script), 0o600))
}

// docs is the folder of the guides. Scripts run elsewhere, so it is absolute.
var docs = func() string {
	dir, err := filepath.Abs(filepath.Join("..", "..", "docs"))
	if err != nil {
		panic(err)
	}
	return dir
}()
