package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// block matches the shell blocks of the README's tour, in order.
var block = regexp.MustCompile("(?s)```sh\n(.*?)```")

// TestReadmeTour runs every command of the README's tour, as written but for the ports, which other tests may be using,
// and the build, which has happened.
func TestReadmeTour(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	blocks := block.FindAllSubmatch(text, -1)
	for _, b := range blocks {
		script.Write(b[1])
	}
	port := freePorts(t)
	tour := replaceOnce(t, script.String(),
		"go build -o bin/ ./cmd/...\nexport PATH=\"$PWD/bin:$PATH\"\n", "set -euo pipefail\nexport PATH=\""+filepath.Dir(binary(t, "claviger"))+":$PATH\"\n",
		"claviger sim init tour\n", fmt.Sprintf("claviger sim init tour --port %d\n", port),
		"claviger fn init passwords\n", fmt.Sprintf("claviger fn init passwords --host http://127.0.0.1:%d\n", port+301),
	)
	ctx := t.Context()
	if end, ok := t.Deadline(); ok { // the end of all tests would leave the daemons behind
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-15*time.Second))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", tour)
	cmd.Dir = t.TempDir()
	// The daemons are children of the shell: if it fails half-way, the whole group has to end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // usually nothing is left
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	checkTour(t, out.String())
	t.Logf("%d shell blocks of the README ran", len(blocks))
}

func replaceOnce(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for pair := range slices.Chunk(pairs, 2) {
		if strings.Count(text, pair[0]) != 1 {
			t.Fatalf("the README's tour has %q not once but %d times", pair[0], strings.Count(text, pair[0]))
		}
		text = strings.Replace(text, pair[0], pair[1], 1)
	}
	return text
}

// checkTour compares what the reader sees with what the README says about it.
func checkTour(t *testing.T, out string) {
	t.Helper()
	keys := regexp.MustCompile(`(?m)^key +([0-9a-f]{64})$`).FindAllStringSubmatch(out, -1)
	if len(keys) != 3 || keys[0][1] != keys[1][1] || keys[1][1] != keys[2][1] {
		t.Errorf("the key was shown as %q, want the same one three times", keys)
	}
	for _, want := range []string{
		"member a", "refused, as it should be", "policy denied", "age1", "sequence 1", `{"user":"ada","password":"hunter2"}`,
		"wrong token", "refused by the function",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the tour does not show %q:\n%s", want, out)
		}
	}
}
