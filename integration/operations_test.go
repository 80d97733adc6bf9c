package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// cells are the first two cells of the rows of the tables in one section of a guide.
func cells(t *testing.T, page, section string) (rows [][2]string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(raw), "\n## "+section+"\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if c := strings.Split(line, "|"); len(c) >= 4 && c[0] == "" {
			rows = append(rows, [2]string{c[1], c[2]})
		}
	}
	return rows
}

var quoted = regexp.MustCompile("`([a-z_]+)`")

// documentedMetrics are those in docs/operations.md, where `_x` has the subsystem of the name before it.
func documentedMetrics(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, row := range cells(t, "operations.md", "Looking") {
		prefix := ""
		for _, m := range quoted.FindAllStringSubmatch(row[0], -1) {
			if words := strings.SplitN(m[1], "_", 3); words[0] == "claviger" {
				prefix = words[0] + "_" + words[1]
				names[m[1]] = true
			} else if prefix != "" {
				names[prefix+m[1]] = true
			}
		}
	}
	return names
}

var metricType = regexp.MustCompile(`(?m)^# TYPE (claviger_[a-z_]+) `)

// metricsAreDocumented compares what the nodes export with what the guide says: the same names, no more and no fewer.
func (w *world) metricsAreDocumented() {
	w.t.Helper()
	have := map[string]bool{}
	for slot := range w.nodes {
		res, err := http.Get("http://" + configured(w.t, filepath.Join(w.dir, slot+".yaml"), "admin: ") + "/metrics")
		if err != nil {
			w.t.Fatal(err)
		}
		raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		res.Body.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		for _, m := range metricType.FindAllSubmatch(raw, -1) {
			have[string(m[1])] = true
		}
	}
	documented := documentedMetrics(w.t)
	for name := range documented {
		if !have[name] {
			w.t.Errorf("docs/operations.md describes %s, which no node exports", name)
		}
	}
	for name := range have {
		if !documented[name] {
			w.t.Errorf("docs/operations.md does not describe %s", name)
		}
	}
	if len(have) < 30 {
		w.t.Errorf("only %d metrics", len(have))
	}
}

// TestRefusalsAreDocumented: the guide for operators has every code that a client may see, with its status.
func TestRefusalsAreDocumented(t *testing.T) {
	t.Parallel()
	documented := map[api.Code]string{}
	for _, row := range cells(t, "operators.md", "What clients see when things go wrong") {
		codes, statuses := quoted.FindAllStringSubmatch(row[0], -1), strings.Split(row[1], ",")
		if _, err := strconv.Atoi(strings.TrimSpace(statuses[0])); err != nil {
			continue // the heading
		}
		for i, c := range codes {
			documented[api.Code(c[1])] = strings.TrimSpace(statuses[min(i, len(statuses)-1)])
		}
	}
	codes := 0
	for _, code := range problemCodes(t) {
		if codes++; documented[code] != strconv.Itoa(code.Status()) {
			t.Errorf("docs/operators.md gives status %q to %s, which has %d", documented[code], code, code.Status())
		}
	}
	if codes < 10 || len(documented) != codes {
		t.Errorf("%d codes, of which %d are documented", codes, len(documented))
	}
}

// problemCodes are the constants of type Code in kds/api.
func problemCodes(t *testing.T) (codes []api.Code) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "kds", "api", "problem.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Code" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, api.Code(text))
		}
		return true
	})
	return codes
}
