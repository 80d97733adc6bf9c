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
	namesTests(t, "threat-model.md", 30)
}

// TestAttacksNameTests does so for the table of attacks on the store, whose outcomes raftstore.TestAttackTable checks.
func TestAttacksNameTests(t *testing.T) {
	t.Parallel()
	namesTests(t, "attacks.md", 40)
}

// namesTests fails if a page names a test that does not exist, or fewer than it should.
func namesTests(t *testing.T, page string, least int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	found := named.FindAllStringSubmatch(string(text), -1)
	if len(found) < least {
		t.Fatalf("found only %d names of tests", len(found))
	}
	tests := map[string][]string{}
	for _, m := range found {
		dir, name := m[1], m[2]
		if tests[dir] == nil {
			tests[dir] = testsOf(t, filepath.Join("..", dir))
		}
		if !slices.Contains(tests[dir], name) {
			t.Errorf("%s names %s in %s, which does not exist", page, name, dir)
		}
	}
	t.Logf("%d tests named by %s exist", len(found), page)
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
