package integration

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// named matches a test as the threat model names it: `package.Test`.
var named = regexp.MustCompile("`([a-z0-9/-]+)\\.(Test[A-Za-z0-9_]+)`")

// TestThreatModelNamesTests keeps the threat model honest: every test that it names exists in the package it names.
func TestThreatModelNamesTests(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "docs", "threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := named.FindAllStringSubmatch(string(text), -1)
	if len(found) < 30 {
		t.Fatalf("found only %d names of tests", len(found))
	}
	tests := map[string][]string{}
	for _, m := range found {
		dir, name := m[1], m[2]
		if tests[dir] == nil {
			tests[dir] = testsOf(t, filepath.Join("..", dir))
		}
		if !slices.Contains(tests[dir], name) {
			t.Errorf("the threat model names %s in %s, which does not exist", name, dir)
		}
	}
	t.Logf("%d tests named by the threat model exist", len(found))
}

// testsOf returns the names of the test functions in a directory.
func testsOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"-"} // so that an empty directory is not read again
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil {
				names = append(names, fn.Name.Name)
			}
		}
	}
	return names
}
