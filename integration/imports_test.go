package integration

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/claviger/claviger"

// rule says what the production files of one package may do. Paths are relative to the module.
type rule struct {
	may    []string // packages of this module it may import; "*" means every one but commands, tests and simulators
	sim    bool     // it may also import the simulators
	pure   bool     // no I/O, no logging, no clock: it is handed bytes and instants
	random bool     // a pure package that may nevertheless read randomness
}

// simulators must never be reachable from a production binary.
var simulators = []string{"enclave/sim", "attest/simpki", "attest/simpki/pcsserver"}

// shared is what all commands are built from.
var shared = []string{
	"cmd/internal/cli", "cmd/internal/config", "cmd/internal/clusterfile", "cmd/internal/daemon", "cmd/internal/kdsd", "cmd/internal/fnd",
}

// house is the import table. Arrows point from the line's package to those in `may`.
var house = map[string]rule{
	"attest":                  {may: []string{"attest/sgx", "attest/tdx", "attest/pck", "attest/tcb"}, pure: true},
	"attest/sgx":              {pure: true},
	"attest/tdx":              {pure: true},
	"attest/pck":              {pure: true},
	"attest/tcb":              {pure: true},
	"attest/pcs":              {may: []string{"attest"}},
	"attest/ear":              {may: []string{"attest"}},
	"attest/ratls":            {may: []string{"attest"}},
	"attest/simpki":           {may: []string{"attest", "attest/sgx", "attest/tdx", "attest/pck", "attest/tcb"}},
	"attest/simpki/pcsserver": {may: []string{"attest", "attest/simpki"}},

	"policy": {may: []string{"attest"}, pure: true},

	"kds":         {may: []string{"policy", "attest", "attest/ear", "attest/pck", "enclave/secret", "kds/api", "kds/derive", "kds/state", "kds/tlog"}},
	"kds/api":     {pure: true},
	"kds/derive":  {may: []string{"enclave/secret"}, pure: true},
	"kds/state":   {may: []string{"kds/api"}, pure: true},
	"kds/tlog":    {pure: true},
	"kds/httpapi": {may: []string{"kds/api", "attest/ratls"}},
	"kds/client":  {may: []string{"kds/api", "attest", "policy", "attest/ear", "attest/ratls", "enclave/secret"}},
	"kds/node":    {may: []string{"*"}},

	"kds/node/nodetest": {},

	"raftstore":                     {may: []string{"enclave/secret"}},
	"raftstore/history":             {may: []string{"raftstore", "enclave/secret"}},
	"raftstore/archive/file":        {may: []string{"raftstore"}},
	"raftstore/archive/bolt":        {may: []string{"raftstore"}},
	"raftstore/archive/remote":      {may: []string{"raftstore"}},
	"raftstore/archive/archivetest": {may: []string{"raftstore", "enclave/secret"}},

	"enclave":                        {may: []string{"enclave/secret"}},
	"enclave/secret":                 {pure: true, random: true},
	"enclave/ego":                    {may: []string{"enclave", "enclave/secret"}},
	"enclave/tdxguest":               {may: []string{"enclave", "enclave/secret"}},
	"enclave/sim":                    {may: []string{"enclave", "enclave/secret", "attest", "attest/sgx", "attest/tdx"}, sim: true},
	"enclave/mail":                   {may: []string{"enclave/secret"}},
	"enclave/persist":                {may: []string{"enclave/secret"}},
	"enclave/persist/persisttest":    {may: []string{"enclave/persist"}},
	"enclave/functions":              {may: []string{"enclave/secret", "enclave/mail", "enclave/persist", "enclave/functions/engine"}},
	"enclave/functions/engine":       {may: []string{"enclave/functions/engine/meter"}},
	"enclave/functions/engine/meter": {},

	"cmd/internal/config":      {},
	"cmd/internal/clusterfile": {may: []string{"kds/api"}},
	"cmd/internal/cli":         {may: []string{"attest", "policy", "kds/api"}},
	"cmd/internal/daemon":      {may: []string{"*", "cmd/internal/cli", "cmd/internal/config"}},
	"cmd/internal/kdsd":        {may: []string{"*", "cmd/internal/cli", "cmd/internal/clusterfile", "cmd/internal/daemon"}},
	"cmd/internal/fnd":         {may: []string{"*", "cmd/internal/cli", "cmd/internal/clusterfile", "cmd/internal/daemon"}},
	"cmd/internal/simworld":    {may: []string{"*", "cmd/internal/cli"}, sim: true},
	"cmd/internal/story":       {may: append([]string{"*", "cmd/internal/simworld"}, shared...), sim: true},

	"cmd/claviger":          {may: append([]string{"*", "cmd/internal/simworld", "cmd/internal/story"}, shared...), sim: true},
	"cmd/clavigerd":         {may: append([]string{"*"}, shared...)},
	"cmd/claviger-fn":       {may: append([]string{"*"}, shared...)},
	"cmd/clavigerd-sim":     {may: append([]string{"*", "cmd/internal/simworld"}, shared...), sim: true},
	"cmd/claviger-fn-sim":   {may: append([]string{"*", "cmd/internal/simworld"}, shared...), sim: true},
	"cmd/claviger-archive":  {may: []string{"cmd/internal/cli", "cmd/internal/daemon", "raftstore", "raftstore/archive/file", "raftstore/archive/bolt", "raftstore/archive/remote"}},
	"examples/conclavepass": {may: []string{"*"}, sim: true},
	"integration":           {may: []string{"*"}, sim: true},
}

// source is what the checker sees of one package: enough to judge it, and small enough to write by hand in a test.
type source struct {
	path    string   // relative to the module
	imports []string // full import paths
	clock   []string // positions that read the clock
}

// check returns one sentence per broken rule, sorted.
func check(rules map[string]rule, sources []source) []string {
	var broken []string
	for _, src := range sources {
		r, known := rules[src.path]
		if !known {
			broken = append(broken, fmt.Sprintf("%s: not in the import table; decide what it may import and add it", src.path))
			continue
		}
		for _, imp := range src.imports {
			if why := r.refuses(imp); why != "" {
				broken = append(broken, fmt.Sprintf("%s imports %s: %s", src.path, imp, why))
			}
		}
		if r.pure {
			for _, at := range src.clock {
				broken = append(broken, fmt.Sprintf("%s reads the clock at %s: a pure package is handed instants", src.path, at))
			}
		}
	}
	slices.Sort(broken)
	return broken
}

// refuses says why the package may not import imp, or "" if it may.
func (r rule) refuses(imp string) string {
	if r.pure {
		switch {
		case imp == "crypto/rand" && !r.random, imp == "math/rand", imp == "math/rand/v2":
			return "a pure package has no randomness"
		case imp == "os", strings.HasPrefix(imp, "os/"), imp == "syscall", imp == "net", strings.HasPrefix(imp, "net/http"),
			imp == "log", strings.HasPrefix(imp, "log/"):
			return "a pure package does no I/O and no logging"
		}
	}
	own, ours := strings.CutPrefix(imp, module+"/")
	switch {
	case !ours:
		return ""
	case slices.Contains(simulators, own):
		if !r.sim && !slices.Contains(r.may, own) {
			return "the simulators stay out of production code"
		}
		return ""
	case slices.Contains(r.may, own), slices.Contains(r.may, "*") && !strings.HasPrefix(own, "integration") && !strings.HasPrefix(own, "cmd/"):
		return ""
	}
	return "the import table has no such arrow"
}

// impureArrows finds lines of the table itself that would let a pure package reach an impure one.
func impureArrows(rules map[string]rule) []string {
	var broken []string
	for from, r := range rules {
		for _, to := range r.may {
			if r.pure && !rules[to].pure {
				broken = append(broken, fmt.Sprintf("%s is pure and may import %s, which is not", from, to))
			}
		}
	}
	slices.Sort(broken)
	return broken
}

// clockReads returns the positions in file that call or mention time.Now and the functions that call it.
// A renamed import is followed; a dot import of time counts as a read, because what it hides cannot be told.
func clockReads(fset *token.FileSet, file *ast.File) []string {
	name := ""
	for _, spec := range file.Imports {
		if spec.Path.Value != `"time"` {
			continue
		}
		name = "time"
		if spec.Name != nil {
			name = spec.Name.Name
		}
	}
	var at []string
	if name == "." {
		at = append(at, fset.Position(file.Pos()).String())
	}
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && name != "" && x.Name == name {
			switch sel.Sel.Name {
			case "Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep":
				at = append(at, fset.Position(sel.Pos()).String())
			}
		}
		return true
	})
	return at
}

// readModule parses every production file below root, whatever its build tags, and returns one source per package.
func readModule(root string) ([]source, error) {
	packages := map[string]*source{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		base := path.Base(rel)
		if d.IsDir() {
			if rel != "." && (base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || nestedModule(file)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		return readFile(fset, packages, rel, file)
	})
	var out []source
	for _, p := range packages {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b source) int { return cmp.Compare(a.path, b.path) })
	return out, err
}

func nestedModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func readFile(fset *token.FileSet, packages map[string]*source, rel, file string) error {
	parsed, err := parser.ParseFile(fset, file, nil, 0)
	if err != nil {
		return err
	}
	dir := path.Dir(rel)
	if packages[dir] == nil {
		packages[dir] = &source{path: dir}
	}
	p := packages[dir]
	for _, spec := range parsed.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		p.imports = append(p.imports, imp)
	}
	p.clock = append(p.clock, clockReads(fset, parsed)...)
	return nil
}

func TestImportTable(t *testing.T) {
	t.Parallel()
	sources, err := readModule("..")
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 20 {
		t.Fatalf("found only %d packages: the test does not look at the module", len(sources))
	}
	for _, sentence := range append(check(house, sources), impureArrows(house)...) {
		t.Error(sentence)
	}
	t.Logf("%d packages checked against the import table", len(sources))
}

// TestProductionLinksNoSimulator lists everything the production daemons link, with and without the tag for EGo.
func TestProductionLinksNoSimulator(t *testing.T) {
	t.Parallel()
	for _, tags := range []string{"", "ego"} {
		for _, binary := range []string{"cmd/clavigerd", "cmd/claviger-fn"} {
			t.Run(binary+" tags="+tags, func(t *testing.T) {
				t.Parallel()
				list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", tags, "./"+binary)
				list.Dir = ".."
				list.Stderr = os.Stderr
				out, err := list.Output()
				if err != nil {
					t.Fatalf("go list -deps ./%s: %v", binary, err)
				}
				deps := strings.Fields(string(out))
				if !slices.Contains(deps, module+"/kds/client") && !slices.Contains(deps, module+"/kds/node") {
					t.Fatalf("%d dependencies and none is the project's core: the test does not look at the binary", len(deps))
				}
				for _, found := range linkedSimulators(deps) {
					t.Errorf("%s links %s", binary, found)
				}
				for _, found := range linkedMappers(deps) {
					t.Errorf("%s links %s: a database that maps its file has no place in an enclave", binary, found)
				}
			})
		}
	}
}

// linkedMappers finds the databases that map their file and follow pointers in it. In an enclave that file is the host's:
// one changed offset makes the next append read or write wherever the host likes, or crash.
func linkedMappers(deps []string) []string {
	var found []string
	for _, dep := range deps {
		for _, banned := range []string{"go.etcd.io/bbolt", "github.com/boltdb/bolt", "github.com/hashicorp/raft-boltdb", module + "/raftstore/archive/bolt"} {
			if dep == banned || strings.HasPrefix(dep, banned+"/") {
				found = append(found, dep)
			}
		}
	}
	return found
}

func linkedSimulators(deps []string) []string {
	var found []string
	for _, dep := range deps {
		own, _ := strings.CutPrefix(dep, module+"/")
		if slices.Contains(simulators, own) || strings.HasSuffix(own, "-sim") || strings.HasPrefix(own, "cmd/internal/sim") || own == "cmd/internal/story" {
			found = append(found, own)
		}
	}
	return found
}

// TestCheckerFails feeds the checker graphs that break one rule each: a checker that cannot fail proves nothing.
func TestCheckerFails(t *testing.T) {
	t.Parallel()
	own := func(p string) string { return module + "/" + p }
	for _, tc := range []struct {
		name string
		src  source
		want string // part of the only sentence; "" means that nothing is wrong
	}{
		{"allowed arrow", source{path: "policy", imports: []string{own("attest"), "strings", "time"}}, ""},
		{"foreign module", source{path: "kds/api", imports: []string{"github.com/fxamacker/cbor/v2"}}, ""},
		{"unknown package", source{path: "attest/extra"}, "not in the import table"},
		{"unknown nested package", source{path: "attest/internal/x"}, "not in the import table"},
		{"arrow against the house", source{path: "attest", imports: []string{own("policy")}}, "no such arrow"},
		{"codec imports the core", source{path: "attest/sgx", imports: []string{own("attest")}}, "no such arrow"},
		{"core imports a command", source{path: "kds", imports: []string{own("cmd/claviger")}}, "no such arrow"},
		{"prefix is not a match", source{path: "policy", imports: []string{own("attestation")}}, "no such arrow"},
		{"simulator in a daemon", source{path: "cmd/clavigerd", imports: []string{own("enclave/sim")}}, "simulators stay out"},
		{"simulated PKI in a node", source{path: "kds/node", imports: []string{own("attest/simpki")}}, "simulators stay out"},
		{"simulator in its daemon", source{path: "cmd/clavigerd-sim", imports: []string{own("enclave/sim"), own("kds/node")}}, ""},
		{"command in a library", source{path: "kds/node", imports: []string{own("cmd/internal/config")}}, "no such arrow"},
		{"tests are not a library", source{path: "kds/node", imports: []string{own("integration")}}, "no such arrow"},
		{"pure with http", source{path: "policy", imports: []string{"net/http"}}, "no I/O"},
		{"pure with os", source{path: "attest/pck", imports: []string{"os"}}, "no I/O"},
		{"pure with exec", source{path: "attest/pck", imports: []string{"os/exec"}}, "no I/O"},
		{"pure with slog", source{path: "kds/state", imports: []string{"log/slog"}}, "no I/O"},
		{"pure with randomness", source{path: "kds/derive", imports: []string{"crypto/rand"}}, "no randomness"},
		{"secret with randomness", source{path: "enclave/secret", imports: []string{"crypto/rand"}}, ""},
		{"secret with math/rand", source{path: "enclave/secret", imports: []string{"math/rand/v2"}}, "no randomness"},
		{"impure with os", source{path: "kds/node", imports: []string{"os", "net/http", "log/slog"}, clock: []string{"node.go:1"}}, ""},
		{"pure with a clock", source{path: "attest", clock: []string{"verify.go:7"}}, "reads the clock at verify.go:7"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := check(house, []source{tc.src})
			switch {
			case tc.want == "" && len(got) != 0:
				t.Errorf("refused: %q", got)
			case tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)):
				t.Errorf("got %q, want one sentence with %q", got, tc.want)
			}
		})
	}
}

func TestTableCannotLaunder(t *testing.T) {
	t.Parallel()
	rules := map[string]rule{"a": {pure: true, may: []string{"b", "c"}}, "b": {pure: true}, "c": {}}
	if got := impureArrows(rules); len(got) != 1 || !strings.Contains(got[0], "may import c") {
		t.Errorf("got %q, want the arrow from a to c", got)
	}
}

func TestLinkedSimulators(t *testing.T) {
	t.Parallel()
	got := linkedSimulators([]string{"os", module + "/kds", module + "/enclave/sim", module + "/attest/simpki", module + "/enclave/simple"})
	if want := []string{"enclave/sim", "attest/simpki"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLinkedMappers(t *testing.T) {
	t.Parallel()
	got := linkedMappers([]string{"os", "github.com/hashicorp/raft", "go.etcd.io/bbolt/internal/common", "github.com/hashicorp/raft-boltdb/v2",
		module + "/raftstore/archive/bolt", module + "/raftstore/archive/file", "go.etcd.io/bboltish"})
	want := []string{"go.etcd.io/bbolt/internal/common", "github.com/hashicorp/raft-boltdb/v2", module + "/raftstore/archive/bolt"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestClockReads(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, code string
		want       int
	}{
		{"plain", `package p; import "time"; func f() time.Time { return time.Now() }`, 1},
		{"as a value", `package p; import "time"; var clock = time.Now`, 1},
		{"renamed", `package p; import t "time"; var clock = t.Now`, 1},
		{"since", `package p; import "time"; func f(x time.Time) time.Duration { return time.Since(x) }`, 1},
		{"dot", `package p; import . "time"; func f() Time { return Now() }`, 1},
		{"no clock", `package p; import "time"; func f(now time.Time) time.Time { return now.Add(time.Hour) }`, 0},
		{"another Now", `package p; type c struct{}; func (c) Now() int { return 0 }; func f(time c) int { return time.Now() }`, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, "p.go", tc.code, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := clockReads(fset, file); len(got) != tc.want {
				t.Errorf("found %v, want %d", got, tc.want)
			}
		})
	}
}
