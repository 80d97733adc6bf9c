//go:build linux

package integration

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Process chaos: real clavigerd-sim processes, each in a network namespace of its own where the machine allows that, a
// nemesis that breaks processes, disks, clocks and packets, and clients whose history must be that of one counter.
//
//	go test ./integration -run TestProcessChaos -v -timeout 40m -args -chaos.minutes=30 -chaos.seed=1 -chaos.nodes=5
//
// The seed decides what the nemesis does, not how the machine schedules it: a run with the same seed is a similar run.
var (
	chaosMinutes = flag.Float64("chaos.minutes", 0.12, "minutes of rounds; starting and checking come on top")
	chaosSeed    = flag.Uint64("chaos.seed", 1, "seed of the nemesis")
	chaosNodes   = flag.Int("chaos.nodes", 3, "key nodes: 3 or 5")
	chaosOnly    = flag.String("chaos.only", "", "comma-separated kinds of faults, to look at them alone; empty: all")
	chaosKeep    = flag.String("chaos.keep", "", "directory to leave logs and data in; empty: a temporary one, kept after a violation")
	chaosRace    = flag.Bool("chaos.race", false, "build the nodes with the race detector")
	chaosBlind   = flag.Bool("chaos.blind", false, "read without proof that the answer is current: a run must then fail, which shows that it can")
	chaosPlain   = flag.Bool("chaos.plain", false, "use loopback addresses even where namespaces can be had")
)

// The environment of the process that the test starts to be the laboratory.
const (
	chaosInsideEnv = "CLAVIGER_CHAOS_INSIDE" // full or plain
	chaosBinEnv    = "CLAVIGER_CHAOS_BIN"    // where the commands are
	chaosDirEnv    = "CLAVIGER_CHAOS_DIR"
)

func init() {
	laboratory = func() (int, bool) {
		mode := os.Getenv(chaosInsideEnv)
		if mode == "" {
			return 0, false
		}
		if mode == "probe" {
			return chaosProbe(), true
		}
		return chaosMain(mode == "full"), true
	}
}

// chaosReserve is what a run needs besides its rounds: building, founding, the last heal and the report.
const chaosReserve = 90 * time.Second

// TestProcessChaos starts itself again in namespaces of its own: user, so that nobody need be root; network, for the
// switch; mount, for small disks; and process, so that the kernel ends every process of the run with it, whatever happens.
func TestProcessChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("seconds of real time")
	}
	if *chaosNodes != 3 && *chaosNodes != 5 {
		t.Fatalf("-chaos.nodes=%d: use 3 or 5", *chaosNodes)
	}
	length := time.Duration(*chaosMinutes * float64(time.Minute))
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		if room := time.Until(end); length > time.Minute && room < length+chaosReserve {
			t.Fatalf("%v of chaos do not fit into go test's limit; run with -timeout %v", length, (length + 2*chaosReserve).Round(time.Minute))
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-5*time.Second))
		defer cancel()
	}
	binary(t, "clavigerd-sim") // builds all
	dir, keep := chaosDir(t)
	bin := binaries.dir
	if *chaosRace {
		bin = t.TempDir()
		build := exec.CommandContext(ctx, "go", "build", "-race", "-o", bin, "./cmd/claviger", "./cmd/clavigerd-sim")
		build.Dir = ".."
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	mode := "full"
	if *chaosPlain {
		mode = "plain"
	} else if err := chaosCanIsolate(); err != nil {
		fmt.Printf("chaos: no namespaces here: %v\n", err)
		mode = "plain"
	}
	if err := chaosRun(ctx, mode, dir, bin); err != nil {
		t.Fatalf("%v; logs and data are in %s", err, keep())
	}
}

// chaosDir returns a short path for the run, and a function that says where it is left.
func chaosDir(t *testing.T) (dir string, keep func() string) {
	dir = *chaosKeep
	if dir != "" {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return dir, func() string { return dir }
	}
	dir, err := os.MkdirTemp("", "claviger-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	kept := false
	t.Cleanup(func() {
		if !kept {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		}
	})
	return dir, func() string { kept = true; return dir }
}

// chaosRun starts the laboratory and passes its output on, until it ends or ctx does.
func chaosRun(ctx context.Context, mode, dir, bin string) error {
	runtime.LockOSThread() // the child shall die with this thread, that is, with this process
	defer runtime.UnlockOSThread()
	cmd := chaosSelf(mode)
	cmd.Env = append(cmd.Env, chaosBinEnv+"="+bin, chaosDirEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })() // with it ends everything it started
	for scan := bufio.NewScanner(out); scan.Scan(); {
		fmt.Println(scan.Text())
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	return nil
}

// chaosSelf is this test binary as the laboratory.
func chaosSelf(mode string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe",
		fmt.Sprint("-chaos.minutes=", *chaosMinutes), fmt.Sprint("-chaos.seed=", *chaosSeed), fmt.Sprint("-chaos.nodes=", *chaosNodes),
		"-chaos.only="+*chaosOnly, fmt.Sprint("-chaos.blind=", *chaosBlind))
	cmd.Env = append(os.Environ(), chaosInsideEnv+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if mode != "plain" {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

// chaosCanIsolate tries it: namespaces, a TUN device, a small disk.
func chaosCanIsolate() error {
	if _, err := exec.LookPath("ip"); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := chaosSelf("probe")
	cmd.Env = append(cmd.Env, chaosDirEnv+"="+os.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
